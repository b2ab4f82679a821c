"""The report's style sheet, script and frame. One file, no network: the page's own policy forbids it."""

from __future__ import annotations

from duplex.benchmarks.turns.report_charts import esc

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "media-src data: file: 'self'; base-uri 'none'; form-action 'none'"
)

# Colours of floors and spans are those of the pictures that duplex.timeline draws.
STYLE = """
:root{color-scheme:light dark;--paper:#f5f6f8;--sheet:#fff;--ink:#1c2330;--quiet:#56607a;--rule:#dce0e8;--faint:#eceff4;
--user:#2f5fd0;--agent:#0b7468;--pass:#0b6b4a;--pass-wash:#e0f3ea;--miss:#b3261e;--miss-wash:#fbe9e7;--open:#7a5200;
--open-wash:#fbf0d9;--none:#56607a;--none-wash:#e9ecf2;--dot:#4c5a78;--limit:#1c2330;--beside:#f5f6f8b0;
--listening:#cdd4e0;--thinking:#e8a91c;--speaking:#2fae9f;--holding:#9a72d8;--yielding:#e2574c;
--eot:#98a2b3;--listener:#5b8def;--thinker:#e8a91c;--talker:#9a72d8;--first:#2fae9f;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Helvetica Neue",Arial,sans-serif}
@media (prefers-color-scheme:dark){:root{--paper:#10141b;--sheet:#181e27;--ink:#e8ecf3;--quiet:#a2adc0;--rule:#323b4a;
--faint:#232b37;--user:#8fb1ff;--agent:#4fd1bf;--pass:#67d6a8;--pass-wash:#12322a;--miss:#ff8f85;--miss-wash:#3d1d1c;
--open:#f0c060;--open-wash:#3a2e14;--none:#a2adc0;--none-wash:#272f3c;--dot:#aab6cf;--limit:#e8ecf3;--beside:#10141bb0;
--listening:#465063;--eot:#77839a}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;background:var(--paper);color:var(--ink);scroll-behavior:smooth}
body{margin:0 auto;max-width:1120px;padding:28px 24px 80px}
h1,h2,h3,p,figure,dl,dd,ol,ul{margin:0;padding:0}
ol,ul{list-style:none}
h1{font-size:1.75rem;line-height:1.2;letter-spacing:-.02em}
h2{font-size:1.25rem;line-height:1.3;letter-spacing:-.01em}
h3{font-size:1rem}
a{color:inherit;text-underline-offset:3px}
:focus-visible{outline:3px solid var(--user);outline-offset:2px;border-radius:4px}
.skip{position:absolute;left:-999px}.skip:focus{left:12px;top:12px;background:var(--sheet);padding:8px 12px}
.quiet,.note,figcaption span{color:var(--quiet)}
.summary{font-size:1.125rem;margin:6px 0 0}
.tally{display:flex;flex-wrap:wrap;gap:10px;margin:18px 0 22px}
.tally li{background:var(--sheet);border:1px solid var(--rule);border-radius:12px;padding:10px 16px;min-width:104px}
.tally b{display:block;font-size:1.6rem;line-height:1.15;font-variant-numeric:tabular-nums}
.tally .pass b{color:var(--pass)}.tally .miss b{color:var(--miss)}.tally .open b{color:var(--open)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:10px 28px;font-size:.9375rem}
.facts dt{color:var(--quiet);font-size:.8125rem}.facts dd{overflow-wrap:anywhere}
details.more{margin:16px 0 0}summary{cursor:pointer;color:var(--quiet);font-size:.9375rem}
summary:hover{color:var(--ink)}
pre{margin:8px 0 0;padding:12px;background:var(--faint);border-radius:8px;font:13px/1.45 ui-monospace,Menlo,Consolas,
monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.filter{display:flex;flex-wrap:wrap;gap:8px;margin:34px 0 10px;align-items:center}
.filter h2{margin-right:auto}
.filter button{font:inherit;font-size:.875rem;color:inherit;background:var(--sheet);border:1px solid var(--rule);
border-radius:99px;padding:5px 14px;cursor:pointer}
.filter button[aria-pressed=true]{background:var(--ink);color:var(--paper);border-color:var(--ink)}
.badge{display:inline-flex;align-items:center;gap:6px;font-size:.8125rem;font-weight:650;border-radius:99px;
padding:2px 10px 2px 8px;white-space:nowrap}
.badge::before{font-weight:700}
.badge.pass{color:var(--pass);background:var(--pass-wash)}.badge.pass::before{content:"✓"}
.badge.miss{color:var(--miss);background:var(--miss-wash)}.badge.miss::before{content:"✕"}
.badge.open{color:var(--open);background:var(--open-wash)}.badge.open::before{content:"?"}
.badge.none{color:var(--none);background:var(--none-wash)}.badge.none::before{content:"–"}
table{border-collapse:collapse;width:100%;font-size:.9375rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;text-align:left;vertical-align:top;border-top:1px solid var(--rule)}
thead th{border-top:0;color:var(--quiet);font-size:.8125rem;font-weight:500}
td.n,th.n{text-align:right;white-space:nowrap}
.sheet{background:var(--sheet);border:1px solid var(--rule);border-radius:14px;overflow:hidden}
#table tbody tr.first>*{border-top:1px solid var(--rule)}
#table tbody tr:not(.first)>*{border-top:1px dashed var(--rule)}
#table th[scope=rowgroup]{font-weight:600}
#table th[scope=rowgroup]{width:25%}#table th div{display:flex;gap:.7em}
#table th div span{color:var(--quiet);font-weight:400;flex:none;min-width:1.3em;text-align:right}
#table td.measure{white-space:nowrap}
#table .meter{width:110px;padding-top:9px}
#table td.missed,.missed-text{color:var(--miss);font-weight:650}
#table .why{color:var(--quiet)}
section.scenario{background:var(--sheet);border:1px solid var(--rule);border-radius:14px;padding:20px 22px 22px;
margin:18px 0 0}
section.scenario.miss{border-left:5px solid var(--miss)}
section.scenario>header{display:flex;flex-wrap:wrap;gap:6px 12px;align-items:center;margin:0 0 6px}
section.scenario>header .quiet{margin-left:auto;font-size:.875rem}
.about{max-width:75ch}
.note{margin:8px 0 0;font-size:.9375rem}
.lanes{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:18px 32px;margin:18px 0 0}
figcaption{font-size:.9375rem;margin:0 0 6px;overflow-wrap:anywhere}
figcaption span{margin-left:6px;font-variant-numeric:tabular-nums}
svg.chart,svg.bullet{display:block;overflow:hidden}
svg text{font-size:12px;fill:var(--ink);font-variant-numeric:tabular-nums}
svg .num,svg .mark-label{fill:var(--quiet)}
svg .axis{stroke:var(--quiet);stroke-width:1;opacity:.6}svg .tick{stroke:var(--rule);stroke-width:1}
svg .dot{fill:var(--dot);fill-opacity:.62}svg .dot.bad,svg .dot.missed{fill:var(--miss);fill-opacity:.95}
svg .dot.kept{fill:var(--pass);fill-opacity:1}svg .dot.mean{fill-opacity:1}
svg .stat{stroke:var(--ink);stroke-width:1.4}svg text.stat{stroke:none;font-weight:600;font-size:11px}
svg .interval{stroke:var(--dot);stroke-width:2}svg .interval.wide{stroke-width:5;opacity:.4;stroke-linecap:butt}
svg .interval.missed{stroke:var(--miss)}svg .interval.kept{stroke:var(--pass)}
svg .limit{stroke:var(--limit);stroke-width:2;stroke-dasharray:4 3}svg .limit.missed{stroke:var(--miss)}
svg .beyond{fill:var(--miss);opacity:.08}
.keys{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:.8125rem;color:var(--quiet);margin:0 0 8px}
.keys li{display:flex;align-items:center;gap:6px}.keys b{color:var(--ink);font-weight:600}
.lanes~.keys{margin:24px 0 0}
.key{width:12px;height:12px;border-radius:3px;display:inline-block;flex:none}
.falls{margin:22px 0 0}
.span-end_of_turn{fill:var(--eot);background:var(--eot)}.span-listener{fill:var(--listener);background:var(--listener)}
.span-thinker{fill:var(--thinker);background:var(--thinker)}.span-talker{fill:var(--talker);background:var(--talker)}
.span-first_packet{fill:var(--first);background:var(--first)}
.floor-listening{fill:var(--listening);background:var(--listening)}
.floor-thinking{fill:var(--thinking);background:var(--thinking)}
.floor-speaking{fill:var(--speaking);background:var(--speaking)}
.floor-holding{fill:var(--holding);background:var(--holding)}
.floor-yielding{fill:var(--yielding);background:var(--yielding)}
svg .wave{stroke-width:1;fill:none}svg .wave.user{stroke:var(--user)}svg .wave.agent{stroke:var(--agent)}
svg .who{font-weight:650}svg .who.user{fill:var(--user)}svg .who.agent{fill:var(--agent)}
svg .said,svg .who,svg .mark-label{paint-order:stroke;stroke:var(--sheet);stroke-width:4px;stroke-linejoin:round}
svg .said{fill:var(--ink)}svg .unheard{stroke:none;fill:var(--quiet);text-decoration:line-through}
svg .mark{stroke-width:1.5}.mark-hold{stroke:var(--holding)}.mark-resume{stroke:var(--speaking)}
.mark-cut{stroke:var(--yielding)}
.mark-commit{stroke:var(--quiet);stroke-dasharray:2 3}
.key.mark-hold,.key.mark-resume,.key.mark-cut,.key.mark-commit{width:4px;border-radius:1px}
.key.mark-hold{background:var(--holding)}.key.mark-resume{background:var(--speaking)}
.key.mark-cut{background:var(--yielding)}.key.mark-commit{background:var(--quiet)}
svg .beside{fill:var(--sheet);opacity:.62}svg .playhead{stroke:var(--ink);stroke-width:2;visibility:hidden}
svg .playhead.on{visibility:visible}
.scroll{overflow-x:auto;margin:8px 0 0}.scroll svg{min-width:760px}
article{border-top:1px solid var(--rule);margin:20px 0 0;padding:16px 0 0}
article h3{display:flex;flex-wrap:wrap;gap:4px 10px;align-items:baseline}
article h3 .quiet{font-weight:400;font-size:.875rem}
.reason{color:var(--miss);margin:4px 0 0;overflow-wrap:anywhere}
.values{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:.875rem;margin:6px 0 0;color:var(--quiet)}
.values b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
audio{width:100%;max-width:520px;height:40px;margin:10px 0 0;display:block}
.words ol{font-size:.9375rem;margin:6px 0 0}.words li span{color:var(--quiet);font-variant-numeric:tabular-nums}
.words li.user b{color:var(--user)}.words li.agent b{color:var(--agent)}
.trials{overflow-x:auto;margin:8px 0 0}.trials td,.trials th{padding:4px 10px;font-size:.875rem;white-space:nowrap}
.trials td.wrap{white-space:normal;min-width:16em;overflow-wrap:anywhere}
.trials tr.bad td{background:var(--miss-wash)}.trials tr.bad td:first-child{box-shadow:inset 3px 0 var(--miss)}
footer{margin:36px 0 0;color:var(--quiet);font-size:.875rem}
[data-show=miss] [data-verdict]:not([data-verdict=miss]),[data-show=failed] [data-failed="0"]{display:none!important}
@media (max-width:720px){body{padding:18px 14px 56px}h1{font-size:1.4rem}
section.scenario{padding:16px 14px;border-radius:12px}section.scenario>header .quiet{margin-left:0;width:100%}
.tally li{flex:1 1 40%}
#table,#table tbody,#table tr,#table th,#table td{display:block;width:auto}#table thead{display:none}
#table tbody{border-top:1px solid var(--rule);padding:10px 14px}#table thead+tbody{border-top:0}
#table tbody tr.first>*,#table tbody tr:not(.first)>*{border:0;padding:1px 0}
#table tr+tr{margin-top:8px;padding-top:8px;border-top:1px dashed var(--rule)}
#table tr:not(.first),#table tr.first{display:flex;flex-wrap:wrap;gap:0 14px;align-items:baseline}
#table th[scope=rowgroup]{flex:1 1 60%;width:auto}#table td.measure,#table .why{flex:1 1 100%;font-weight:500}
#table td.n{text-align:left;white-space:nowrap}#table td.n::before{content:attr(data-name) " ";color:var(--quiet);
font-weight:400}#table td.n:empty{display:none}#table .meter{flex:1 1 100%;width:auto;padding:4px 0 0}
.scroll{margin-right:-14px}}
@media print{:root{color-scheme:light;--paper:#fff;--sheet:#fff;--ink:#000;--quiet:#444;--rule:#bbb;--faint:#f2f2f2;
--user:#2f5fd0;--agent:#0b7468;--pass:#0b6b4a;--pass-wash:#e0f3ea;--miss:#b3261e;--miss-wash:#fbe9e7;--dot:#4c5a78;
--limit:#000;--listening:#cdd4e0;--eot:#98a2b3;--open:#7a5200;--open-wash:#fbf0d9;--none:#444;--none-wash:#eee}
html{background:#fff;font-size:11px}body{max-width:none;padding:0}.filter button,.skip,audio{display:none}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
section.scenario,.sheet{border-radius:0}tbody,article,figure,.lane{break-inside:avoid}
section.scenario>header{break-after:avoid}
.scroll svg{min-width:0}.scroll,.trials{overflow:visible}}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
"""

SCRIPT = """
const root=document.documentElement;
for(const button of document.querySelectorAll('.filter button'))button.addEventListener('click',()=>{
  root.dataset.show=button.value;
  for(const other of button.parentElement.querySelectorAll('button'))other.setAttribute('aria-pressed',other===button);
});
for(const audio of document.querySelectorAll('audio')){
  const chart=audio.closest('article').querySelector('svg.timeline');
  const line=chart&&chart.querySelector('.playhead');
  if(!line)continue;
  const draw=()=>{
    const at=(audio.currentTime*100000/Number(chart.dataset.ms)).toFixed(2)+'%';
    line.setAttribute('x1',at);line.setAttribute('x2',at);
    if(!audio.paused)requestAnimationFrame(draw);
  };
  audio.addEventListener('play',()=>{
    for(const other of document.querySelectorAll('audio'))if(other!==audio)other.pause();
    line.classList.add('on');draw();
  });
  audio.addEventListener('seeked',draw);
  chart.addEventListener('click',event=>{
    const box=chart.getBoundingClientRect();
    audio.currentTime=(event.clientX-box.left)/box.width*Number(chart.dataset.ms)/1000;
    line.classList.add('on');draw();
  });
}
"""


def page(title: str, body: str) -> str:
    """A whole document. ``title`` is escaped, ``body`` is markup."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{esc(POLICY)}">\n'
        f"<title>{esc(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#table">Skip to the table</a>\n{body}\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )
