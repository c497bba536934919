// Calls with the key, and elements of the page. Knows nothing of what is shown.

export const at = id => document.getElementById(id)

export const headers = more => at('key').value ? { authorization: 'Bearer ' + at('key').value, ...more } : { ...more }

export async function call(method, path, body) {
  const kinds = body === undefined ? {} : { 'content-type': 'application/json' }
  const sent = { method, headers: headers({ accept: 'application/json', ...kinds }) }
  const answer = await fetch(path.slice(1), body === undefined ? sent : { ...sent, body: JSON.stringify(body) })
  const content = await answer.json()
  if (!answer.ok && path !== '/health/ready') throw Object.assign(new Error(content.detail || content.title), { status: answer.status })
  return content
}

export const isClosed = error => error.status === 401 || error.status === 403

// A file as a URL of this page: a link of its own would come without the key.
export async function file(path, accept) {
  const answer = await fetch(path.slice(1), { headers: headers({ accept }) })
  if (!answer.ok) throw new Error((await answer.json()).detail)
  return URL.createObjectURL(await answer.blob())
}

export function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties)
  made.append(...children)
  return made
}

export const row = (kind, cells) => element('tr', {}, ...cells.map(cell => element(kind, {}, String(cell))))

export function say(text, bad, where = 'message') { at(where).textContent = text; at(where).className = bad ? 'bad' : 'dim' }
export const doing = (work, where) => async event => {
  event.preventDefault()
  try { const words = await work(event); if (where) say(typeof words === 'string' ? words : '', false, where) } catch (error) { say(error.message, true, where) }
  dispatchEvent(new Event('refresh'))
}

// Draws anew only what has changed, so that focus and opened details stay.
const shown = {}
export function show(id, value, draw) {
  const text = JSON.stringify(value)
  if (shown[id] === text) return
  shown[id] = text
  at(id).replaceChildren(...draw(value))
}
