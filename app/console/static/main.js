// The page: its parts, drawn anew every two seconds.

import { at, call } from './api.js'
import './draw.js'
import { choices, forget, isExplained, showJob } from './job.js'
import { showReviews } from './review.js'
import { showVersions } from './versions.js'

at('key').value = sessionStorage.getItem('key') || ''
at('key').onchange = () => { sessionStorage.setItem('key', at('key').value); forget(); refresh() }

function queue(ready) {
  const silent = ready.worker.state === 'silent', since = new Date(ready.worker.since).toLocaleString()
  at('state').className = ready.redis_reason || silent ? 'bad' : 'dim'
  const redis = ready.redis_reason ? `Redis ${ready.redis}: ${ready.redis_reason}` : `Redis ${ready.redis}`
  return silent ? [redis, `no worker heard of since ${since}`] : [redis]
}

async function refresh() {
  try {
    const ready = await call('GET', '/health/ready')
    at('state').textContent = [ready.status === 'ready' ? ready.model : ready.reason, ...queue(ready)].join(' · ')
    if (ready.status !== 'ready') return
    showVersions(await call('GET', '/codebooks'))
    if (!isExplained()) await choices()
    await showReviews()
    const [latest] = await call('GET', '/jobs?limit=1')
    if (latest) showJob(latest)
  } catch (error) { at('state').textContent = error.message }
}

refresh()
onfocus = choices
addEventListener('refresh', refresh)
setInterval(refresh, 2000)
