// The page: its parts, drawn anew every two seconds while it is looked at.

import { at, call } from './api.js'
import { forgetAudit, showAudit } from './audit.js'
import { showChoices } from './compare.js'
import './draw.js'
import { choices, forget, isExplained, showJob } from './job.js'
import { forgetReviews, showReviews } from './review.js'
import { badge, showService, unready } from './service.js'
import { showTrial } from './trial.js'
import { limit, showSplit, showVersions } from './versions.js'

at('key').value = sessionStorage.getItem('key') || ''
at('key').onchange = () => {
  sessionStorage.setItem('key', at('key').value)
  for (const panel of [forget, forgetAudit, forgetReviews]) panel()
  refresh()
}

let isRefreshing = false, again = false
async function refresh() {
  again = isRefreshing
  if (isRefreshing) return
  isRefreshing = true
  try { await draw() } catch (error) { at('state').textContent = error.message } finally { isRefreshing = false }
  if (again) refresh()
}

async function draw() {
  const ready = await call('GET', '/health/ready')
  at('state').textContent = ready.status === 'ready' ? ready.model : 'not ready'
  if (ready.status !== 'ready') return unready(ready.reason)
  const { active, versions } = await call('GET', `/codebooks?limit=${limit()}`)
  badge(active.version)
  // A panel that fails takes no other with it.
  const panels = [showVersions(versions, active), showChoices(versions, active.version), showService(ready, active), showAudit(active.epoch), showReviews(), showLatest(), showSplit(), showTrial(active)]
  const failed = (await Promise.allSettled(panels)).find(panel => panel.status === 'rejected')
  if (failed) throw failed.reason
}

async function showLatest() {
  if (!isExplained()) await choices()
  const latest = (await call('GET', '/jobs?limit=20')).find(job => job.kind === 'improve')
  if (latest) showJob(latest)
}

refresh()
onfocus = choices
addEventListener('refresh', refresh)
setInterval(() => document.hidden || refresh(), 2000)
