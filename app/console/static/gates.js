// Gates and facts of a run, as the lists of versions and rounds show them.

import { element } from './api.js'

// A gate that was not measured has neither passed nor failed.
const VERDICTS = [['passed', '✓', 'good'], ['failed', '✗', 'bad'], ['not measured', '–', 'dim']]
const verdict = gate => gate.passed === true ? VERDICTS[0] : gate.passed === false ? VERDICTS[1] : VERDICTS[2]
export function gates(all, ...more) {
  const rows = Object.entries(all).map(([name, gate]) => [name.replaceAll('_', ' '), gate, verdict(gate)])
  if (!rows.length) return []
  const counts = VERDICTS.map(kind => [rows.filter(row => row[2] === kind).length, kind]).filter(([count]) => count)
  const words = counts.map(([count, [word, , style]]) => element('span', { className: style }, `${count} ${word}`))
  return [element('details', {}, element('summary', {}, 'gates: ', ...words.flatMap((word, i) => i ? [' · ', word] : [word])),
    element('div', { className: 'gates' }, ...rows.map(([name, gate, [word, sign, style]]) =>
      element('span', { className: style, title: `${word}: ${gate.threshold || ''}` }, `${sign} ${name}`))), ...more)]
}

export function facts(policy, judge, covered, selfJudged) {
  const words = [policy && `policy ${policy}`, judge && `second judge ${judge}`, covered && `knows ${covered.join(', ') || 'none'}`]
  return element('div', { className: 'line dim' }, words.filter(word => word).join(' · '), ' ', ...mark(selfJudged))
}
export function mark(categories) {
  if (!categories || !categories.length) return []
  const title = 'The second judge does not know: ' + categories.join(', ')
  return [element('span', { className: 'badge warn', title }, 'self-judged: ' + categories.join(', '))]
}
