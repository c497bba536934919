// What serves: the version, since when and by whom, the queue, the verdicts on live images, Redis and the workers.

import { at, call, element, show } from './api.js'

const local = time => new Date(time).toLocaleString()

export async function showService(ready, active) {
  let traffic = null
  try { traffic = await call('GET', '/traffic') } catch { /* its row says so; the others have what matters then */ }
  show('service', rows(ready, active, traffic), all => all.flatMap(([name, words, bad]) =>
    [element('dt', {}, name), element('dd', { className: bad ? 'bad' : '' }, words)]))
}

function rows(ready, active, traffic) {
  const silent = ready.worker.state === 'silent'
  return [
    ['Serves', `${active.version} since ${local(active.moved_at)}, by ${active.moved_by} (epoch ${active.epoch})`, ready.refused],
    ...(ready.refused ? [['Refused', ready.refused, true]] : []),
    ...(ready.stale_s > 5 ? [['Store', `not followed for ${ready.stale_s} s`, true]] : []),
    ['Images', `${ready.images.waiting} waiting, ${ready.images.drawing} drawing`],
    ['Judged unsafe', traffic ? shares(traffic) : 'cannot be read now', !traffic || traffic.alert],
    ...(ready.bad_numbers ? [['Refused images', `${ready.bad_numbers}, for NaN or infinity`, true]] : []),
    ['Redis', ready.redis_reason ? `${ready.redis}: ${ready.redis_reason}` : ready.redis, ready.redis_reason],
    ['Worker', silent ? `not heard of since ${local(ready.worker.since)}` : ready.worker.state, silent],
    ...Object.entries(ready.storage).filter(([, state]) => state !== 'ok').map(([place, state]) => [place, state, true]),
  ]
}

function shares(traffic) {
  const windows = traffic.windows.map(share => `${(100 * share).toFixed(1)} %`).join(', ')
  const { images, unsafe, sum, alert } = traffic.cusum
  const cusum = `${unsafe} of ${images} prompts, CUSUM ${alert ? 'alert' : sum.toFixed(1)} of ${traffic.cusum_limit}`
  const unjudged = traffic.unjudged ? `; of ${traffic.judged + traffic.unjudged} images in the log ${traffic.judged} judged` : ''
  if (traffic.judge === 'off') return `no image is judged (SAFECB_JUDGE=off)${windows && `; before: ${windows}`}`
  return `${windows || 'no full window yet'} of ${traffic.window} images each; ${traffic.rest} since; ${cusum}${unjudged}`
}

export const unready = reason => show('service', reason, words => [element('dt', {}, 'Not ready'), element('dd', { className: 'bad' }, words)])
export const badge = version => { at('active').textContent = version }
