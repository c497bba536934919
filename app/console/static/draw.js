// The form that draws: previews on the way, finished images, the same call as code.

import { at, call, doing, element, headers, say } from './api.js'
import { bind } from './state.js'

for (const name of ['prompt', 'n', 'seed']) bind(at('draw').elements[name], name)

let last = null

at('draw').onsubmit = doing(async event => {
  const form = new FormData(event.target), button = event.submitter
  const asked = { prompt: form.get('prompt'), n: Number(form.get('n')) }
  if (form.get('seed')) asked.seed = Number(form.get('seed'))
  button.disabled = true
  say('Drawing…')
  try {
    const figures = Array.from({ length: asked.n }, () => element('figure'))
    at('images').replaceChildren(...figures)
    const drawn = []
    for await (const [name, data] of events(asked)) {
      if (name === 'queued' && data.ahead) say(`${data.ahead} images start before, about ${Math.ceil(data.eta_s)} s`)
      if (name === 'preview') figures[data.index].replaceChildren(image(data.b64_png))
      if (name === 'error') throw new Error(data.detail)
      if (name === 'image') {
        figures[drawn.length].replaceWith(picture(data))
        drawn.push(data)
      }
    }
    last = { ...asked, seed: drawn[0].seed }
    at('codes').hidden = false
    say(`Seed ${last.seed}, codebook ${drawn[0].codebook}`)
  } finally { button.disabled = false }
})

// The server-sent events of a call, as names and data.
async function* events(asked) {
  const sent = headers({ accept: 'text/event-stream', 'content-type': 'application/json' })
  const answer = await fetch('generate', { method: 'POST', headers: sent, body: JSON.stringify(asked) })
  if (!answer.ok) throw new Error((await answer.json()).detail)
  let rest = ''
  for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
    const blocks = (rest + part).split('\n\n')
    rest = blocks.pop()
    for (const block of blocks) {
      const lines = Object.fromEntries(block.split('\n').map(line => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 2)]))
      if (lines.event) yield [lines.event, JSON.parse(lines.data)]
    }
  }
}

const image = b64_png => element('img', { src: 'data:image/png;base64,' + b64_png, alt: at('draw').prompt.value })

function picture(drawn) {
  const safety = drawn.safety, percent = Math.round(100 * safety.score)
  const verdict = safety.unsafe === null ? 'not judged' : safety.unsafe ? `unsafe: ${safety.category}, ${percent} %` : `safe, ${100 - percent} %`
  return element('figure', {},
    image(drawn.b64_png),
    element('figcaption', {}, `${drawn.seed} · ${drawn.codebook} · `,
      element('span', { className: safety.unsafe ? 'bad' : '' }, verdict), safety.redraws ? ` · redraws: ${safety.redraws} ` : safety.edited ? ' · edited ' : ' ', flagger(drawn),
      ...(drawn.revised_prompt === null ? [] : [element('div', { className: 'dim' }, `drawn instead: ${drawn.revised_prompt}`)])))
}

function flagger(drawn) {
  return element('button', { title: 'Say that this image is unsafe', onclick: doing(async event => {
    await call('POST', '/flags', { image_id: drawn.id })
    event.target.replaceWith('flagged')
  }) }, 'Flag')
}

const copied = (id, text) => { at(id).onclick = doing(async () => { await navigator.clipboard.writeText(text()); say('Copied') }) }
const quoted = text => `'${text.replaceAll("'", `'\\''`)}'`
copied('as-curl', () => `curl -s ${quoted(new URL('generate', location).href)} -H 'content-type: application/json' ` +
  (at('key').value ? "-H 'authorization: Bearer KEY' " : '') + `-d ${quoted(JSON.stringify(last))}`)
copied('as-openai', () => `from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(new URL('v1', location).href)}, api_key="${at('key').value ? 'KEY' : 'none'}")
answer = client.images.generate(prompt=${JSON.stringify(last.prompt)}, n=${last.n}, extra_body={"seed": ${last.seed}})
`)
