// The list of versions: activate, roll back, reports.

import { at, call, doing, element, file, show } from './api.js'
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
    report, button, ...(book.self_judged.length ? [element('div', { className: 'line' }, ...mark(book.self_judged))] : []),
    ...(details ? [details] : []))
}
async function origins(version) {
  try {
    const { policy, judges, covered } = (await call('GET', `/codebooks/${version}/report`)).report
    return facts(policy && policy.name, judges && judges.at(-1).name, covered)
  } catch (error) { return error.message }
}
