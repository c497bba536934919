// The list of versions: activate, roll back, reports.

import { at, call, doing, element, file, show } from './api.js'
import { evidence } from './evidence.js'
import { facts, gates, mark } from './gates.js'

at('rollback').onclick = doing(() => call('POST', '/codebooks/rollback', {}), 'books-message')

const PAGE = 20, MOST = 1000 // of one answer
const MODES = ['edit', 'rewrite', 'redraw', 'refuse']
let most = PAGE, active = null, able = null
export const limit = () => most
at('older').onclick = doing(() => { most = Math.min(most + PAGE, MOST) })

// The modes that the model is able to have; all while that cannot be read, since the server refuses the others by name.
async function learnModes() {
  try {
    const facts = (await call('GET', '/codebooks/v0/report')).report
    able = MODES.filter(mode => mode !== 'rewrite' || facts.rewrites !== false)
  } catch { /* the next turn reads it */ }
}

export async function showVersions(versions, record) {
  active = record
  if (able === null) await learnModes()
  at('older').hidden = versions.length < most || most === MOST
  show('versions', [versions.toReversed(), active.traffic, active.shadow, active.canary, able], ([all]) => all.map(version))
}

function version(book) {
  const path = `/codebooks/${book.version}/report`
  const open = doing(async () => window.open(await file(path, 'text/html')), 'books-message')
  const report = element('a', { href: path.slice(1), onclick: event => at('key').value && open(event) }, 'report')
  const origin = book.parent ? `from ${book.parent} · ${book.created.slice(0, 16).replace('T', ' ')}` : "the model's own"
  const run = element('div'), [details] = gates(book.gates, run)
  if (details) details.ontoggle = async () => { if (details.open) run.replaceChildren(await origins(book.version)) }
  return element('div', { className: 'row' }, element('span', {}, book.version), element('span', { className: 'dim wide' }, origin),
    ...(book.mode ? [modes(book)] : []), report, ...state(book), ...(book.self_judged.length ? [element('div', { className: 'line' }, ...mark(book.self_judged))] : []),
    ...(details ? [details] : []))
}
const move = (name, title, work) => element('button', { title, onclick: doing(work, 'books-message') }, name)
const percent = share => `${+(100 * share).toFixed(1)} %`

// What a split has shown so far.
export async function showSplit() {
  const split = Object.keys(active.traffic).length ? await call('GET', '/codebooks/traffic') : { evidence: {} }
  show('split', [split.evidence, active.version, split.judge], ([seen, beside, judge]) => Object.entries(seen).flatMap(([version, own]) => [
    element('p', { className: judge === 'off' ? 'bad' : 'dim' }, judge === 'off'
      ? `${version}: no image is judged (SAFECB_JUDGE=off), the split does not end by itself`
      : `${version}: ${own.unsafe} of ${own.images} images unsafe, ${own.beside_unsafe} of ${own.beside_images} of ${beside}` +
        `${judge === 'all' ? '' : `, judged ones alone (${judge})`}; evidence ${own.e.toFixed(1)}, at ${own.limit} the split ends`),
    ...(own.curve.images.length < 2 ? [] : [evidence(`${version} is worse`, 'images', own.curve.images, { evidence: own.curve.e }, own.limit, 'ends')]),
  ]))
}

// What a version draws, and the moves that it allows.
function state(book) {
  const post = what => () => call('POST', `/codebooks/${book.version}/${what}`, {})
  const share = part => () => call('PUT', '/codebooks/traffic', { [active.version]: 1 - part, [book.version]: part })
  if (book.state === 'revoked') return [element('span', { className: 'badge bad' }, 'revoked'), move('Restore', 'Allow it again', post('restore'))]
  const revoke = book.version === 'v0' ? [] : [move('Revoke', 'Draw nothing under it any more, whoever names it', post('revoke'))]
  const part = active.traffic[book.version]
  const drawing = part === undefined ? '' : percent(part)
  if (book.state === 'active') return [element('span', { className: 'badge' }, `active ${drawing}`), ...revoke]
  if (active.shadow.version === book.version) return [element('span', { className: 'badge' }, 'compared'), move('Activate', '', post('activate')), ...revoke]
  if (book.state === 'canary') return [element('span', { className: 'badge' }, active.canary === book.version ? `${drawing} in steps` : drawing),
    ...(part < 0.5 && !active.canary ? [move('50 %', 'Let it draw half of the traffic', share(0.5))] : []),
    move('End', 'Let the active version draw for all', () => call('DELETE', '/codebooks/traffic')), move('Activate', '', post('activate')), ...revoke]
  return [move('Compare', 'Compare it with the active version on live images, unseen', post('shadow')),
    move('In steps', 'Let it draw 1, 10, 50 % of the traffic, then all, under the guard', post('canary')),
    move('10 %', 'Let it draw a tenth of the traffic', share(0.1)), move('Activate', '', post('activate')), ...revoke]
}

// What becomes of images that fire; another choice publishes a version of its own.
function modes(book) {
  const choice = element('select', { ariaLabel: `Mode of ${book.version}`, title: 'Of images that fire; another mode is a new version' },
    ...(able ?? MODES).map(mode => element('option', { value: mode }, mode)))
  choice.value = book.mode
  choice.onchange = doing(async () => {
    const mode = choice.value
    choice.value = book.mode
    const made = await call('POST', `/codebooks/${book.version}/derive`, { mode })
    return `${made.version} is ${book.version} in mode ${mode}; activate it to use it`
  }, 'books-message')
  return choice
}
async function origins(version) {
  try {
    const { policy, judges, covered } = (await call('GET', `/codebooks/${version}/report`)).report
    return facts(policy && policy.name, judges && judges.at(-1).name, covered)
  } catch (error) { return error.message }
}
