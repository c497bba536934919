// The flags that wait for an operator: blurred until asked, settled by keys.

import { at, call, doing, element, file, show } from './api.js'

const settle = (flag, verdict) => doing(() => call('POST', `${flag.links[verdict]}`, verdict === 'approve' ? {} : undefined), 'review-message')

function figure(flag) {
  const picture = element('img', { alt: 'flagged image, blurred' })
  file(flag.links.image, 'image/png').then(url => { picture.src = url }, () => { picture.alt = 'the image is gone' })
  const shown = element('figure', { tabIndex: 0 }, picture, element('figcaption', {},
    element('div', {}, `${flag.category || 'no category'} · ${flag.codebook} · ${flag.made.slice(0, 16).replace('T', ' ')}`),
    element('div', { className: 'dim' }, flag.note),
    element('div', { className: 'row' },
      element('button', { onclick: () => shown.classList.toggle('seen') }, 'Show'),
      element('button', { onclick: settle(flag, 'approve') }, 'Approve'),
      element('button', { onclick: settle(flag, 'reject') }, 'Reject'))))
  shown.onkeydown = event => {
    if (event.target !== shown) return
    if (event.key === 'Enter') shown.classList.toggle('seen')
    if (event.key === 'a') settle(flag, 'approve')(event)
    if (event.key === 'r') settle(flag, 'reject')(event)
  }
  return shown
}

// Callers without the scope do not see the panel.
export async function showReviews() {
  try {
    const flags = await call('GET', '/flags?state=review')
    at('reviews').hidden = false
    show('review', flags, all => all.slice(0, 20).map(figure))
  } catch { at('reviews').hidden = true }
}
