// Two versions side by side: one prompt under both with a wipe, and their manifests.

import { at, call, doing, element, row, say, show } from './api.js'
import { bind, keep, stated } from './state.js'

const { left, right } = at('compare').elements
const chosen = () => [left.value, right.value]
const older = {} // manifests by version; null for one that is not there
let books = [], listed = ''

const manifest = async version => { try { return await call('GET', '/codebooks/' + version) } catch { return null } }

// The newest versions, and of the older ones v0, the active one and those of the address.
export async function showChoices(versions, active) {
  const shown = versions.map(book => book.version), wished = ['v0', active, stated('left'), stated('right')]
  for (const version of new Set(wished)) if (version && !shown.includes(version)) older[version] ??= await manifest(version)
  books = [...Object.values(older).filter(book => book && !shown.includes(book.version)), ...versions]
  const names = books.map(book => book.version)
  if (names.join() !== listed) {
    listed = names.join()
    for (const [field, usual] of [[left, 'v0'], [right, active === 'v0' ? names.at(-1) : active]]) { // two, if there are
      field.replaceChildren(...names.map(version => element('option', { value: version }, version)))
      field.value = [stated(field.name), usual, names.at(-1)].find(version => names.includes(version))
    }
  }
  showFacts()
}

for (const field of [left, right]) field.onchange = () => { keep(field.name, field.value); showFacts() }
bind(at('differences'), 'differences')
at('sides').open = stated('facts') === 'open'
at('sides').ontoggle = () => keep('facts', at('sides').open ? 'open' : '')
at('differences').onchange = showFacts

at('compare').onsubmit = doing(async event => {
  const { prompt, seed } = at('draw').elements
  if (!prompt.value) throw new Error('Write a prompt above first')
  event.submitter.disabled = true
  say('Drawing…', false, 'compare-message')
  try {
    const body = { prompt: prompt.value, versions: chosen() }
    if (seed.value) body.seed = Number(seed.value)
    const answer = await call('POST', '/codebooks/compare', body), { share } = answer.difference
    const tokens = answer.same_tokens ? 'the same tokens' : 'other tokens'
    const summary = `Seed ${answer.seed}: ${(100 * share).toFixed(1)} % of the pixels differ, ${tokens}`
    at('pair').replaceChildren(wipe(answer.images, answer.images.map(image => image.codebook), summary))
  } finally { event.submitter.disabled = false }
}, 'compare-message')

const verdict = safety => safety.unsafe === null ? 'not judged' : safety.unsafe ? `unsafe (${safety.category})` : 'safe'

// The second image lies over the first, from the place of the slider on.
function wipe(images, names, summary) {
  const pictures = images.map((image, i) => element('img', { src: 'data:image/png;base64,' + image.b64_png, alt: `under ${names[i]}` }))
  const slider = element('input', { type: 'range', min: 0, max: 100, value: 50, ariaLabel: 'Wipe' })
  const cut = () => { pictures[1].style.clipPath = `inset(0 0 0 ${slider.value}%)` }
  slider.oninput = cut
  cut()
  const words = images.map((image, i) => element('span', { className: image.safety.unsafe ? 'bad' : '' },
    `${names[i]}: ${verdict(image.safety)}`))
  return element('figure', {}, element('div', { className: 'stack' }, ...pictures), slider,
    element('figcaption', {}, element('div', { className: 'ends' }, ...words), summary))
}

function showFacts() {
  const two = chosen().map(version => books.find(book => book.version === version)).filter(book => book)
  const isPair = two.length === 2 && two[0] !== two[1]
  at('sides').hidden = !isPair
  const rows = isPair ? pairs(...two.map(facts)) : []
  const kept = at('differences').checked ? rows.filter(([, one, other]) => one !== other) : rows
  show('facts', [chosen(), kept], ([heads, all]) => [all.length ? table(heads, all) : element('p', { className: 'dim' }, 'No differences.')])
}

function pairs(one, other) {
  const names = [...new Set([...Object.keys(one), ...Object.keys(other)])]
  return names.map(name => [name, one[name] ?? '–', other[name] ?? '–'])
}

const table = (heads, rows) => element('table', {}, element('thead', {}, row('th', ['of', ...heads])),
  element('tbody', {}, ...rows.map(([name, ...cells]) => element('tr', {}, element('th', { scope: 'row' }, name), ...cells.map(cell => element('td', {}, cell))))))

// A manifest as names and texts: rates in percent with their intervals, gates by their verdict.
function facts(book) {
  const { parent, created, job, round, tables, binds, content_hash, figures, gates } = book
  const flat = { parent, created: created.slice(0, 16).replace('T', ' '), job, round, edits: tables.join(', '), binds, hash: content_hash.slice(0, 12) }
  for (const [name, gate] of Object.entries(gates)) flat['gate: ' + words(name)] = gate.passed === true ? 'passed' : gate.passed === false ? 'failed' : 'not measured'
  flatten(figures, [], flat)
  return Object.fromEntries(Object.entries(flat).map(([name, value]) => [name, value === null || value === '' ? '–' : String(value)]))
}
const words = name => name === 'harmful' ? 'harmful prompts' : name.replaceAll('_', ' ')
const KINDS = { hr: 'harmful', vr: 'degenerate', svr: 'safe and valid' }
const percent = rate => `${(100 * rate.value).toFixed(1)} %`
const isMap = value => value !== null && typeof value === 'object' && !Array.isArray(value)

// Rates before and after are one row; of their kinds the first two, since the third follows from them.
function flatten(value, path, into) {
  if (!isMap(value)) into[path.join(', ')] = typeof value === 'number' ? Number(value.toPrecision(3)) : JSON.stringify(value)
  else if (isMap(value.before) && 'hr' in value.before) {
    for (const kind of ['hr', 'vr']) {
      const { before: { [kind]: from }, after: { [kind]: to } } = value
      if (from && to) into[[...path, KINDS[kind]].join(', ')] = `${percent(from)} to ${percent(to)} (n ${to.n})`
    }
  } else if ('value' in value && 'n' in value) into[path.join(', ')] = `${percent(value)} (n ${value.n})`
  else for (const [name, inner] of Object.entries(value)) flatten(inner, [...path, KINDS[name] || words(name)], into)
}
