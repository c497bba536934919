// The latest improve job, and the form that starts one.

import { at, call, doing, element, say, show } from './api.js'
import { showCurve } from './curve.js'
import { facts, gates } from './gates.js'

at('cancel').onclick = doing(() => call('DELETE', '/jobs/' + at('cancel').dataset.job), 'job-message')
at('improve').onsubmit = doing(() => {
  const fields = at('improve').elements, body = { policy: fields.policy.value }, budget = {}
  if (fields.second_judge.value.trim()) body.second_judge = fields.second_judge.value.trim()
  for (const limit of ['images', 'minutes']) if (fields[limit].value) budget[limit] = Number(fields[limit].value)
  if (Object.keys(budget).length) body.budget = budget
  if (fields.accept_self_judged.checked) body.accept_self_judged = true
  return call('POST', '/improve', body)
}, 'job-message')

let policies = []
export async function choices() {
  try {
    const judges = await call('GET', '/judges'), { policy, second_judge } = at('improve').elements, chosen = policy.value
    policies = (await call('GET', '/policies')).sort((one, other) => other.usual - one.usual)
    policy.replaceChildren(...policies.map(one => element('option', { value: one.name, disabled: one.fault !== null },
      one.name + (one.fault ? ' (faulty)' : one.usual ? ' (usual)' : ''))))
    if (policies.some(one => one.name === chosen)) policy.value = chosen
    second_judge.placeholder = judges.usual
    at('judges').replaceChildren(...[...judges.names, ...judges.shapes].map(value => element('option', { value })))
    explain()
  } catch (error) { say(error.message, true, 'job-message') }
}
function explain() {
  const policy = policies.find(one => one.name === at('improve').elements.policy.value)
  at('categories').textContent = policy ? 'Categories: ' + policy.categories.join(', ') : ''
}
at('improve').elements.policy.onchange = explain

function harm(round) {
  const percent = rate => `${(100 * rate.value).toFixed(1)} % (${(100 * rate.low).toFixed(1)}-${(100 * rate.high).toFixed(1)})`
  const sides = (round.figures || {}).harmful
  const fresh = round.decision && round.decision.confirmed
  return [sides && `harmful ${percent(sides.before.hr)} to ${percent(sides.after.hr)}`,
    round.failing && `fresh prompts failing before ${percent(round.failing)}`,
    fresh && `p ${fresh.p.toPrecision(2)}, below ${fresh.limit.toPrecision(2)} is wanted`].filter(word => word).join(', ')
}
function job(record) {
  const progress = record.progress, ended = record.ended !== null
  const bar = ended ? [] : [element('progress', { max: progress.total || 1, value: progress.done })]
  const rounds = record.rounds.map(round => element('div', { className: 'row' }, element('span', {}, 'round ' + round.round),
    element('span', { className: 'dim wide' }, [round.fault || round.reason, harm(round)].filter(word => word).join(' · ')),
    element('span', {}, round.version || ''), ...gates(round.gates || {})))
  const { request } = record, result = record.result || {}
  const usual = ended ? '' : at('improve').elements.second_judge.placeholder
  const judge = result.second_judge || request.second_judge || usual
  const run = facts(result.policy || request.policy, judge, result.covered, result.self_judged)
  const steps = progress.total ? ` ${progress.done}/${progress.total}` : ''
  const left = record.plan && record.plan.seconds_left
  const time = left ? ` · about ${Math.max(1, Math.round(left / 60))} min left` : ''
  const words = ended ? record.error || '' : progress.message + steps + time
  return [element('div', {}, `${record.status} `, element('span', { className: 'dim' }, words)), run, ...bar, ...rounds]
}

export function showJob(latest) {
  show('job', latest, job)
  showCurve(latest.rounds)
  at('start').disabled = latest.ended === null
  at('cancel').hidden = latest.ended !== null
  at('cancel').dataset.job = latest.id
}

export const isExplained = () => policies.some(policy => policy.usual)
export const forget = () => { policies = [] }
