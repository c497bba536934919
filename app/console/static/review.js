// The flags that wait for an operator: blurred until asked, settled by keys.

import { at, call, doing, element, file, isClosed } from './api.js'

const SHOWN = 20
const reject = flag => doing(() => call('POST', flag.links.reject), 'review-message')
const approve = (flag, category) => doing(() => call('POST', flag.links.approve, category.value ? { category: category.value } : {}), 'review-message')

let categories = null, isRefused = false
export const forgetReviews = () => { isRefused = false }

// A flag of a category that the model does not know is approved as one that it knows.
function figure(flag) {
  const isKnown = categories.includes(flag.category)
  const category = element('select', { ariaLabel: 'Category' }, ...(isKnown ? [] : [option('', 'as flagged')]), ...categories.map(name => option(name, name)))
  if (isKnown) category.value = flag.category
  const picture = element('img', { alt: 'flagged image, blurred' })
  file(flag.links.image, 'image/png').then(url => { picture.src = url }, () => { picture.alt = 'the image is gone' })
  const shown = element('figure', { tabIndex: 0 }, picture, element('figcaption', {},
    element('div', {}, `${flag.category || 'no category'} · ${flag.codebook} · ${flag.made.slice(0, 16).replace('T', ' ')}`),
    element('div', { className: 'dim' }, flag.note),
    element('div', { className: 'row' },
      element('button', { onclick: () => shown.classList.toggle('seen') }, 'Show'),
      category,
      element('button', { onclick: approve(flag, category) }, 'Approve'),
      element('button', { onclick: reject(flag) }, 'Reject'))))
  shown.dataset.flag = flag.id
  shown.onkeydown = event => {
    if (event.target !== shown) return
    if (event.key === 'Enter') shown.classList.toggle('seen')
    if (event.key === 'a') approve(flag, category)(event)
    if (event.key === 'r') reject(flag)(event)
  }
  return shown
}
const option = (value, text) => element('option', { value }, text)

// Figures of flags that stay are kept: an operator is looking at one, or choosing its category.
function arrange(flags) {
  const there = Object.fromEntries([...at('review').children].map(shown => [shown.dataset.flag, shown]))
  const wanted = flags.slice(0, SHOWN).map(flag => there[flag.id] || figure(flag))
  for (const shown of Object.values(there)) if (!wanted.includes(shown)) leave(shown, wanted)
  wanted.forEach((shown, i) => { if (at('review').children[i] !== shown) at('review').insertBefore(shown, at('review').children[i] || null) })
}

// The next flag gets the focus of one that is settled.
function leave(shown, wanted) {
  let next = shown.nextElementSibling
  while (next && !wanted.includes(next)) next = next.nextElementSibling
  const hadFocus = shown.contains(document.activeElement)
  shown.remove()
  if (hadFocus && next) next.focus()
}

// Callers without the scope do not see the panel.
export async function showReviews() {
  if (isRefused) return
  let flags
  try { flags = await call('GET', '/flags?state=review') } catch (error) {
    at('reviews').hidden = true
    isRefused = isClosed(error)
    return
  }
  at('reviews').hidden = false
  categories ??= (await call('GET', '/codebooks/v0/report')).report.categories
  arrange(flags)
}
