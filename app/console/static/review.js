// The flags that wait for an operator: blurred until asked, settled by keys.

import { at, call, doing, element, file, show } from './api.js'

const reject = flag => doing(() => call('POST', flag.links.reject), 'review-message')
const approve = (flag, category) => doing(() => call('POST', flag.links.approve, category.value ? { category: category.value } : {}), 'review-message')

let categories = null
async function known() {
  categories ??= (await call('GET', '/codebooks/v0/report')).report.categories
  return categories
}

// A flag of a category that the model does not know is approved as one that it knows.
function figure(flag) {
  const category = element('select', { ariaLabel: 'Category' }, ...['', ...categories].map(name =>
    element('option', { value: name, selected: name === flag.category }, name || 'no category')))
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
  shown.onkeydown = event => {
    if (event.target !== shown) return
    if (event.key === 'Enter') shown.classList.toggle('seen')
    if (event.key === 'a') approve(flag, category)(event)
    if (event.key === 'r') reject(flag)(event)
  }
  return shown
}

// Callers without the scope do not see the panel.
export async function showReviews() {
  try {
    const flags = await call('GET', '/flags?state=review')
    await known()
    at('reviews').hidden = false
    show('review', flags, all => all.slice(0, 20).map(figure))
  } catch { at('reviews').hidden = true }
}
