"""The page's style sheet: dark on light, no fonts and no pictures from elsewhere, narrow and wide screens."""

CSS = """
:root { color-scheme: light; --ink: #1b2430; --muted: #465160; --line: #cdd4dc; --fill: #3b7fc4; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
h4 { font-size: 1.1rem; margin: 0; }
h5 { font-size: .95rem; margin: .5rem 0 .4rem; }
p { margin: .4rem 0; max-width: 76ch; }
a { color: #0b4f94; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
.labels { background: #fdf3d0; border-left: .3rem solid #b98900; padding: .5rem .75rem; max-width: none; }
.count, .spread, .facts, .small { color: var(--muted); font-weight: 400; }
.count, .facts { font-size: .87rem; }

.scroll { overflow-x: auto; margin: .75rem 0 1.25rem; }
.scroll:focus-visible, .strip:focus-visible { outline: 3px solid #0b4f94; outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0;
  font-size: .92rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: start; color: var(--muted); font-size: .87rem; padding-bottom: .3rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: end; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; white-space: normal; max-width: 9rem;
  overflow-wrap: break-word; }
th:first-child { text-align: start; position: sticky; inset-inline-start: 0; background: var(--paper); }
tbody th { font-weight: 600; white-space: normal; overflow-wrap: anywhere; min-width: 7.5rem; max-width: 20rem; }
tbody th .count { display: block; font-size: .8rem; }
td .spread { font-size: .82rem; }

.plots { margin-top: 1.5rem; display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem 2.5rem; }
.plot { margin: 0; }
figcaption { color: var(--muted); font-size: .87rem; margin-bottom: .4rem; min-height: 2.6em; }
.bar { display: grid; grid-template-columns: 9rem 1fr 3.2rem; gap: .6rem; align-items: center; font-size: .9rem; }
.bar .number { text-align: end; font-variant-numeric: tabular-nums; }
.bar svg { display: block; overflow: visible; }
.fill { fill: var(--fill); }
.grid { stroke: var(--line); }
.reference { stroke: var(--ink); stroke-dasharray: 3 2; }
.whisker { stroke: var(--ink); stroke-width: 2; }
.axis text { fill: var(--muted); font-size: 12px; }

.legend { display: flex; flex-wrap: wrap; gap: .15rem; align-items: center; font-size: .87rem; color: var(--muted); }
.key { display: inline-block; width: 1.3rem; height: 1rem; border: 1px solid var(--line); }
.key:first-of-type { margin-inline-start: .4rem; }
.key:last-of-type { margin-inline-end: .4rem; }
.up1 { background: #e7f1fb; } .up2 { background: #d0e4f6; } .up3 { background: #b8d6f1; }
.up4 { background: #a1c9ec; } .up5 { background: #8abbe6; }
.down1 { background: #fdefe2; } .down2 { background: #fbdfc5; } .down3 { background: #f8cfa8; }
.down4 { background: #f6bf8b; } .down5 { background: #f3af6e; }
[class*="up"] .spread, [class*="down"] .spread { color: #27313d; }

article { border: 1px solid var(--line); border-radius: .5rem; padding: .9rem; margin: 1rem 0; }
.facts { max-width: none; }
.reason { color: var(--ink); font-weight: 600; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.5rem; }
.side { min-width: 0; }
.strip ol { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 1rem .5rem; margin: 0; padding: 0;
  list-style: none; counter-reset: place; }
.strip li { counter-increment: place; min-width: 0; font-size: .8rem; line-height: 1.3; }
.strip p { margin: .2rem 0; }
.photo { position: relative; height: 9.25rem; display: flex; align-items: center; justify-content: center;
  background: #f4f6f8; border: 1px solid var(--line); border-radius: .25rem; overflow: hidden; }
.photo::before { content: counter(place); position: absolute; inset-block-start: 0; inset-inline-start: 0;
  padding: 0 .4rem; background: var(--paper); border: 1px solid var(--line); font-weight: 700; z-index: 1; }
.photo img { max-width: 100%; max-height: 100%; width: auto; height: 100%; object-fit: contain; }
.photo.missing { border-style: dashed; border-color: var(--muted); color: var(--muted); text-align: center; }
.more { position: absolute; inset-block-end: 0; inset-inline-end: 0; padding: 0 .3rem; background: var(--paper); }
.grade { padding: 0 .35rem; border-radius: .2rem; font-weight: 600; }
.grade.full { background: #cdecd7; color: #0c4220; }
.grade.part { background: #fbeab0; color: #4d3a00; }
.grade.none { background: #e8ebef; color: #37414d; font-weight: 400; }
.title { min-height: 2.6em;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4; overflow: hidden; }
.weights { display: block; border: 1px solid var(--muted); }
.whole { fill: #f1d9a7; }
.share { fill: #2c6aa8; }
.small { font-size: .76rem; }
.small span { white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0 1.5rem; margin: .25rem 0 1rem;
  font-size: .9rem; }
dt { font-weight: 600; }
dd { margin: 0 0 .4rem; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
code { font: .87em/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }

@media (max-width: 62rem) { .pair { grid-template-columns: minmax(0, 1fr); gap: .75rem; } }
@media (max-width: 40rem) {
  body { padding: .5rem .75rem 3rem; }
  article { padding: .7rem; }
  dl { display: block; }
  .bar { grid-template-columns: 1fr auto; gap: 0 .6rem; margin-bottom: .3rem; }
  .bar svg { grid-row: 2; grid-column: 1 / -1; }
  .bar.axis span { display: none; }
  .plot figcaption { min-height: 0; }
  tbody th { min-width: 8.6rem; max-width: 9.5rem; overflow-wrap: break-word; }
  .strip { overflow-x: auto; padding-bottom: .4rem; }
  .strip ol { display: flex; width: max-content; }
  .strip li { width: 7.2rem; }
}
"""
