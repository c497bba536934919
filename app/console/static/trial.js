// The shadow comparison that goes on, or ended while the page was open: counts, and e-values with their lines.

import { at, call, doing, element, row } from './api.js'
import { evidence } from './evidence.js'

let isKnown = false // a page that knows of none must not ask for one: browsers log a 404

export async function showTrial(active) {
  isKnown ||= Boolean(active.shadow.job)
  if (!isKnown) return
  const trial = await call('GET', '/codebooks/shadow')
  const goesOn = Boolean(active.shadow.job), decided = trial.decision || trial.status
  const words = `${trial.version} beside ${active.version}: ${decided}, ${trial.pairs} of at most ${trial.most} pairs`
  const heads = ['measure', 'worse', 'equal', 'better', `e worse (ends at ${trial.retreat_at})`, `e as good (all at ${trial.promote_at})`]
  const rows = Object.entries(trial.measures).map(([name, counts]) => row('td', [name, counts.worse, counts.equal, counts.better,
    +counts.e_worse.toPrecision(3), +counts.e_within.toPrecision(3)]))
  const table = element('table', {}, element('thead', {}, row('th', heads)), element('tbody', {}, ...rows))
  const text = words + JSON.stringify([trial.measures, trial.curve]) + goesOn
  if (at('trial').dataset.text === text) return
  at('trial').dataset.text = text
  at('trial').replaceChildren(element('p', { className: 'dim' }, words), table, ...charts(trial), ...(goesOn ? [end()] : []))
}

function charts({ curve, measures, retreat_at, promote_at }) {
  if (!curve.pairs || curve.pairs.length < 2) return []
  const named = kind => Object.fromEntries(Object.keys(measures).map(name => [name, curve[`${kind}_${name}`]]))
  return [evidence('Worse, by measure', 'pairs', curve.pairs, named('worse'), retreat_at, 'retreats'),
    evidence('As good, by measure', 'pairs', curve.pairs, named('within'), promote_at, 'all promote')]
}

const end = () => element('button', { title: 'End the comparison', onclick: doing(() => call('DELETE', '/codebooks/shadow'), 'books-message') }, 'End')
