// e-values of a trial as a curve on a log axis, with the line at which it is decided. Knows numbers and names of curves.

import uPlot from './vendor/uPlot.esm.js'
import { element } from './api.js'

const LEAST = 0.01, MOST = 1000, HEIGHT = 150 // e-values are drawn from LEAST, which speaks for nothing, to MOST limits
const COLOURS = ['--accent', '--warn', '--dim']
const plots = new Map() // by element

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name)
const number = e => e >= 1e4 || e < LEAST ? e.toExponential(0) : `${+e.toPrecision(3)}`

// counts: what was counted at each point; named: the e-values of each curve; limit: where `verdict` begins.
export function evidence(title, unit, counts, named, limit, verdict) {
  const curves = Object.entries(named), highest = Math.max(10 * limit, ...curves.flatMap(([, values]) => values))
  const most = Math.min(highest, MOST * limit), drawn = e => Math.min(Math.max(e, LEAST), most)
  const host = element('div', { className: 'evidence' })
  const axis = { stroke: colour('--dim'), grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false } }
  const decades = Array.from({ length: Math.floor(Math.log10(most / LEAST)) + 1 }, (_, i) => +(LEAST * 10 ** i).toPrecision(1))
  const last = counts.length - 1 // whose values the legend gives while no pointer is over the curves
  const value = (plot, e, series, i) => number(curves[series - 1][1][i ?? last])
  const data = [counts, ...curves.map(([, values]) => values.map(drawn)), counts.map(() => limit)]
  host.append(element('p', { className: 'dim' }, title))
  requestAnimationFrame(() => { // its width is known once it is on the page
    forget()
    if (!host.isConnected) return
    plots.set(host, new uPlot({
      width: host.clientWidth, height: HEIGHT, cursor: { y: false },
      scales: { x: { time: false }, y: { distr: 3, range: [LEAST, most] } },
      axes: [{ ...axis, size: 28 }, { ...axis, splits: decades, filter: (plot, marks) => marks.map((e, i) => i % 2 ? null : e), values: (plot, marks) => marks.map(e => e === null ? '' : number(e)) }],
      series: [{ label: unit, value: (plot, count, series, i) => counts[i ?? last] },
        ...curves.map(([name], i) => ({ label: name, stroke: colour(COLOURS[i]), width: 2, points: { show: counts.length < 3 }, value })),
        { label: `${verdict} at ${limit}`, stroke: colour('--bad'), dash: [6, 4], points: { show: false }, value: () => '' }],
    }, data, host))
    plots.get(host).setLegend({ idx: null })
  })
  host.setAttribute('role', 'img')
  const ends = curves.map(([name, values]) => `${name} ${number(values.at(-1))}`).join(', ')
  host.setAttribute('aria-label', `${title}: ${ends} after ${counts.at(-1)} ${unit}; ${verdict} at ${limit}`)
  return host
}

function forget() {
  for (const [host, plot] of plots) {
    if (host.isConnected) continue
    plot.destroy()
    plots.delete(host)
  }
}

addEventListener('resize', () => {
  forget()
  for (const [host, plot] of plots) plot.setSize({ width: host.clientWidth, height: HEIGHT })
})
