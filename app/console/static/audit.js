// The newest activations: what became active, when, and by whose key or job.

import { at, call, element, isClosed, row, show } from './api.js'

const SHOWN = 12
let last = -1

// Callers without the scope do not see the panel.
export async function showAudit(epoch) {
  if (epoch === last) return
  try {
    const moves = await call('GET', `/codebooks/audit?limit=${SHOWN}`)
    at('audits').hidden = false
    last = epoch
    show('audit', moves, all => [element('table', {}, element('thead', {}, row('th', ['epoch', 'move', 'version', 'by', 'when'])),
      element('tbody', {}, ...all.map(move => row('td', [move.epoch, `${move.move} ${move.shadow.version || move.canary}`, `${move.previous || '–'} → ${move.version}`,
        move.moved_by, new Date(move.moved_at).toLocaleString()]))))])
  } catch (error) {
    at('audits').hidden = true
    if (isClosed(error)) last = epoch // not asked for again before the next activation, or another key
  }
}
export const forgetAudit = () => { last = -1 }
