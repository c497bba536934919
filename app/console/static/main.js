// The page: its parts, drawn anew every two seconds while it is looked at.

import { at, call } from './api.js'
import { forgetAudit, showAudit } from './audit.js'
import { showChoices } from './compare.js'
import './draw.js'
import { choices, forget, isExplained, showJob } from './job.js'
import { showReviews } from './review.js'
import { badge, showService, unready } from './service.js'
import { limit, showVersions } from './versions.js'

at('key').value = sessionStorage.getItem('key') || ''
at('key').onchange = () => { sessionStorage.setItem('key', at('key').value); forget(); forgetAudit(); refresh() }

async function refresh() {
  try {
    const ready = await call('GET', '/health/ready')
    at('state').textContent = ready.status === 'ready' ? ready.model : 'not ready'
    if (ready.status !== 'ready') return unready(ready.reason)
    const { active, versions } = await call('GET', `/codebooks?limit=${limit()}`)
    badge(active.version)
    showVersions(versions)
    showChoices(versions, active.version)
    await showService(ready, active)
    await showAudit(active.epoch)
    if (!isExplained()) await choices()
    await showReviews()
    const [latest] = await call('GET', '/jobs?limit=1')
    if (latest) showJob(latest)
  } catch (error) { at('state').textContent = error.message }
}

refresh()
onfocus = choices
addEventListener('refresh', refresh)
setInterval(() => document.hidden || refresh(), 2000)
