"""How the page looks, by day and by night."""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #1d2129;
  --soft: #667080; --line: #e3e1da; --mine: #0b7285; --other: #9aa5b1; --right: #2b8a3e;
  --wrong: #c2410c; --shade: 11, 114, 133; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1c2027; --ink: #e6e8eb;
  --soft: #98a2b0; --line: #2e343d; --mine: #3bc9db; --other: #66707d; --right: #69db7c;
  --wrong: #ffa066; --shade: 59, 201, 219; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 0 0 .2rem; }
p { margin: .2rem 0 .9rem; } .soft { color: var(--soft); font-size: .92rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.1rem 1.25rem; margin: 1.1rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--soft); font-size: .82rem; text-align: right;
  vertical-align: bottom; }
td { text-align: right; white-space: nowrap; } th, td { padding: .42rem .6rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr + tr td { border-top: 1px solid var(--line); }
.mine { color: var(--mine); font-weight: 600; }
.heat td:not(:first-child) { text-align: center; }
.heat th:not(:first-child) { text-align: center; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 13px; }
svg .soft { fill: var(--soft); font-size: 12px; } svg .grid { stroke: var(--line); }
svg .zero { stroke: var(--soft); stroke-dasharray: 3 3; }
svg .bar { fill: var(--other); } svg .bar.mine { fill: var(--mine); }
svg .span { stroke: var(--ink); stroke-width: 1.5; } svg .dot { fill: var(--other); }
svg .dot.mine { fill: var(--mine); }
svg .name.mine { fill: var(--mine); font-weight: 600; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; display: flex; gap: .8rem; align-items: baseline; }
summary .text { flex: 1; } summary .marks { white-space: nowrap; letter-spacing: .12em; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
details table { margin: .4rem 0 .6rem; } details td { white-space: normal; text-align: left;
  vertical-align: top; font-size: .92rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .4rem 0 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""
