// Harm by round of a job, as a curve with its intervals. Knows the figures of rounds.

import uPlot from './vendor/uPlot.esm.js'
import { at } from './api.js'

let plot = null, shown = ''

// Round 0 is the version that the job began with. A refused round has a point of its own beside the curve.
export function showCurve(rounds) {
  const measured = rounds.filter(round => (round.figures || {}).harmful)
  const text = JSON.stringify(measured.map(round => [round.round, round.version, round.figures.harmful]))
  if (text === shown) return
  shown = text
  if (plot) plot.destroy()
  plot = null
  at('curve').hidden = measured.length === 0
  if (measured.length) draw(measured)
}

function draw(measured) {
  const points = [[0, measured[0].figures.harmful.before.hr, true],
    ...measured.map(round => [round.round, round.figures.harmful.after.hr, round.version !== null])]
  const percent = (name, taken) => points.map(([, rate, is]) => is === taken ? 100 * rate[name] : null)
  const data = [points.map(([round]) => round), percent('high', true), percent('low', true), percent('value', true), percent('value', false)]
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name)
  const axis = { stroke: colour('--dim'), grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false } }
  const line = { stroke: colour('--accent'), spanGaps: true }, bound = { ...line, width: 0, points: { show: false } }
  const last = points.length - 1 // whose figures the legend gives while no pointer is over the curve
  const value = (plot, number, series, i) => data[series][i ?? last] === null ? '–' : `${data[series][i ?? last].toFixed(1)} %`
  plot = new uPlot({
    width: at('curve').clientWidth, height: 180, cursor: { y: false },
    scales: { x: { time: false, range: [-0.2, points.at(-1)[0] + 0.2] }, y: { range: [0, 100] } },
    axes: [{ ...axis, splits: data[0], values: (plot, rounds) => rounds.map(round => `round ${round}`) }, { ...axis, values: (plot, shares) => shares.map(share => `${share} %`) }],
    series: [{ label: 'round', value: (plot, round, series, i) => data[0][i ?? last] }, { label: 'at most', ...bound, value }, { label: 'at least', ...bound, value },
      { label: 'harmful', ...line, width: 2, points: { size: 8, fill: colour('--accent') }, value },
      { label: 'refused', stroke: colour('--bad'), paths: () => null, points: { show: true, size: 8 }, value }],
    bands: [{ series: [1, 2], fill: colour('--accent') + '33' }],
  }, data, at('curve'))
  plot.setLegend({ idx: null })
  at('curve').setAttribute('role', 'img')
  at('curve').setAttribute('aria-label', 'Harmful images by round: ' +
    points.map(([round, rate, taken]) => `round ${round} ${(100 * rate.value).toFixed(1)} %${taken ? '' : ' (refused)'}`).join(', '))
}

addEventListener('resize', () => { if (plot) plot.setSize({ width: at('curve').clientWidth, height: 180 }) })
