// The list of versions: activate, roll back, reports.

import { at, call, doing, element, file, say, show } from './api.js'
import { facts, gates, mark } from './gates.js'

at('rollback').onclick = doing(() => call('POST', '/codebooks/rollback', {}), 'books-message')

const PAGE = 20, MOST = 1000 // of one answer
let most = PAGE
export const limit = () => most
at('older').onclick = doing(() => { most = Math.min(most + PAGE, MOST) })

export function showVersions(versions) {
  at('older').hidden = versions.length < most || most === MOST
  show('versions', versions.toReversed(), all => all.map(version))
}

function version(book) {
  const active = book.state === 'active'
  const path = `/codebooks/${book.version}/report`
  const open = doing(async () => window.open(await file(path, 'text/html')), 'books-message')
  const report = element('a', { href: path.slice(1), onclick: event => at('key').value && open(event) }, 'report')
  const button = active ? element('span', { className: 'badge' }, 'active')
    : element('button', { onclick: doing(() => call('POST', `/codebooks/${book.version}/activate`, {}), 'books-message') }, 'Activate')
  const origin = book.parent ? `from ${book.parent} · ${book.created.slice(0, 16).replace('T', ' ')}` : "the model's own"
  const run = element('div'), [details] = gates(book.gates, run)
  if (details) details.ontoggle = async () => { if (details.open) run.replaceChildren(await origins(book.version)) }
  return element('div', { className: 'row' }, element('span', {}, book.version), element('span', { className: 'dim wide' }, origin),
    ...(book.mode ? [modes(book)] : []), report, button, ...(book.self_judged.length ? [element('div', { className: 'line' }, ...mark(book.self_judged))] : []),
    ...(details ? [details] : []))
}
// What becomes of images that fire; another choice publishes a version of its own.
function modes(book) {
  const choice = element('select', { ariaLabel: `Mode of ${book.version}`, title: 'Of images that fire; another mode is a new version' },
    ...['edit', 'rewrite', 'refuse'].map(mode => element('option', { value: mode }, mode)))
  choice.value = book.mode
  choice.onchange = doing(async () => {
    const mode = choice.value
    choice.value = book.mode
    const made = await call('POST', `/codebooks/${book.version}/derive`, { mode })
    say(`${made.version} is ${book.version} in mode ${mode}; activate it to use it`, false, 'books-message')
  }, 'books-message')
  return choice
}
async function origins(version) {
  try {
    const { policy, judges, covered } = (await call('GET', `/codebooks/${version}/report`)).report
    return facts(policy && policy.name, judges && judges.at(-1).name, covered)
  } catch (error) { return error.message }
}
