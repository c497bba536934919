// What the page shows, in the address behind "#": a reload or a copied link shows the same, and no server sees it.

const WAIT_MS = 200 // browsers refuse to change the address at every key
let writing

const state = new URLSearchParams(location.hash.slice(1))

export const stated = name => state.get(name) || ''

export function keep(name, value) {
  if (value) state.set(name, value)
  else state.delete(name)
  clearTimeout(writing)
  writing = setTimeout(() => history.replaceState(null, '', '#' + state), WAIT_MS)
}

// A link that is pasted into the open page changes nothing but the address.
addEventListener('hashchange', () => location.reload())

// A field whose value is part of the state.
export function bind(field, name) {
  const box = field.type === 'checkbox'
  if (state.has(name)) box ? (field.checked = true) : (field.value = state.get(name))
  field.addEventListener('input', () => keep(name, box ? (field.checked ? 'on' : '') : field.value))
}
