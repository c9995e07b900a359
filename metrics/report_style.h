/* How a report looks: light and dark as the reader's system has it, black on white in print, on telephones and wide screens. */
#ifndef METRICS_REPORT_STYLE_H
#define METRICS_REPORT_STYLE_H

/* Colours of series after Okabe and Ito, "Color Universal Design" (2008), darkened or lightened for contrast with the page. */
static const char report_style[] =
    ":root { --ink: #1c1c1e; --faint: #5d5d66; --grid: #d9d9de; --page: #ffffff; --panel: #f5f5f7; --mark: #ffe08a;\n"
    "  --series-0: #0072b2; --series-1: #c24e00; --series-2: #007a5a; --series-3: #a5427e; --series-4: #7a6500;\n"
    "  --series-5: #4d4d55; color-scheme: light dark }\n"
    "@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --faint: #a5a5ae; --grid: #3b3b42; --page: "
    "#151517;\n"
    "  --panel: #222226; --mark: #6b5300; --series-0: #62b5e8; --series-1: #f0904e; --series-2: #3dc79d; --series-3: "
    "#dc8fc0;\n"
    "  --series-4: #d8c244; --series-5: #b9b9c2 } }\n"
    "* { box-sizing: border-box }\n"
    "body { margin: 0 auto; max-width: 1200px; padding: 16px; color: var(--ink); background: var(--page);\n"
    "  font: 16px/1.5 system-ui, sans-serif }\n"
    "h1 { font-size: 1.6rem; margin: 8px 0 }\nh2 { font-size: 1.25rem; margin: 40px 0 12px }\nh3 { font-size: 1rem; "
    "margin: 24px 0 8px }\n"
    "a { color: var(--series-0) }\nnav a { margin-right: 16px }\n"
    ".scroll { overflow-x: auto }\n"
    "table { border-collapse: collapse; font-size: 0.9rem }\n"
    "th, td { padding: 4px 12px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid) "
    "}\n"
    "td.number { font-variant-numeric: tabular-nums; white-space: nowrap }\n"
    "td.best { font-weight: 700 }\n"
    ".interval, .faint { color: var(--faint); font-weight: 400; font-size: 0.85em }\n"
    ".charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 16px }\n"
    "svg.chart { width: 100%; max-width: 520px; height: auto; background: var(--panel); border-radius: 8px }\n"
    "svg text { font: 12px system-ui, sans-serif; fill: var(--ink) }\nsvg text.head { font-weight: 600 }\n"
    "svg .grid { stroke: var(--grid) }\nsvg .faint { stroke: var(--faint); stroke-dasharray: 3 3 }\n"
    "svg .ink { stroke: var(--ink) }\nsvg .series { stroke-width: 2; stroke-linecap: round; stroke-linejoin: round "
    "}\n"
    ".example { border-top: 2px solid var(--grid); padding: 12px 0 }\n"
    ".outputs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr)); gap: 16px }\n"
    ".outputs > div { min-width: 0 }\n"
    ".outputs img { max-width: min(100%, 220px); height: auto; background: #ffffff; border: 1px solid var(--grid) }\n"
    "pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 12px/1.4 ui-monospace, monospace; background: "
    "var(--panel);\n"
    "  padding: 8px; border-radius: 6px; margin: 8px 0 }\n"
    "mark { background: var(--mark); color: inherit }\ndel { color: var(--faint) }\n"
    "@media print { :root { --ink: #000000; --page: #ffffff; --panel: #ffffff; --grid: #bbbbbb; --mark: #dddddd }\n"
    "  body { max-width: none; font-size: 11px } nav { display: none } .example, svg { break-inside: avoid } }\n";

#endif
