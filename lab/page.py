"""
The page of a comparison: one self-contained HTML file, with Bokeh's plots (hover, zoom, a tap on the legend hides an
arm) and the table. It works without a network, and on a phone.
"""

import html
import re
from pathlib import Path

from files import write
from lab import outcomes, tables
from lab.costs import cost_table
from lab.figures import colors, pareto_points
from lab.stats import pareto

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 0 12px 40px; max-width: 1100px; color: #222; }}
h1 {{ font-size: 1.4em; }} h2 {{ font-size: 1.1em; margin: 1.4em 0 .3em; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .85em; }}
td, th {{ border: 1px solid #ccc; padding: 3px 8px; text-align: left; white-space: nowrap; }}
li {{ font-size: .9em; }}
</style>
{resources}
</head>
<body>
<h1>{title}</h1>
{body}
{script}
</body>
</html>
"""


def write_page(title: str, c: dict, found: list, out: Path):
    from bokeh.document import Document
    from bokeh.embed import components
    from bokeh.resources import INLINE

    plots = {f'{c["metric"]} against {name}': curves(c, found, axis, name) for axis, name in outcomes.AXES.items()}
    plots |= {f'{c["metric"]} against {k}': front(c, found, k) for k in ('parameters that are trained', 'ms/step')}
    document = Document()
    with document.models.freeze():  # else all models are looked through at each plot that comes in
        for plot_ in plots.values():
            document.add_root(plot_)
    script, divs = components(plots)
    parts = [claims(c, found), to_html(tables.table(c, found))]
    parts += [f'<pre class="scroll">{html.escape(t)}</pre>' for t in [cost_table(c, found)] if t]
    parts += [f'<h2>{html.escape(k)}</h2>\n<div class="plot">{div}</div>' for k, div in divs.items()]
    page = TEMPLATE.format(
        title=html.escape(title),
        resources='\n'.join(f'<script>{s}</script>' for s in INLINE.js_raw[:1]),  # Bokeh's core, without its widgets
        body='\n'.join(parts),
        script=script,
    )
    write(out, page.encode())


def claims(c: dict, found: list) -> str:
    return '\n'.join(
        f'<p>{html.escape(claim)}: {to_bold(html.escape(word))}, {html.escape(effect)}, {seeds} seeds</p>'
        for claim, word, effect, seeds in tables.summary(c, found)
    )


def to_bold(text: str) -> str:
    return re.sub(r'\*\*(.+?)\*\*', r'<b>\1</b>', text)


def to_html(markdown: str) -> str:
    """The tables and lists that tables.table writes, and no more Markdown than that."""
    return '\n'.join(map(block, to_bold(html.escape(markdown)).strip().split('\n\n')))


def block(text: str) -> str:
    lines = text.splitlines()
    if not lines[0].startswith('|'):
        return '<ul>\n' + ''.join(f'<li>{line[2:]}</li>\n' for line in lines) + '</ul>'
    head, _, *rows = ([cell.strip() for cell in line.strip('|').split('|')] for line in lines)
    body = ''.join('<tr>' + ''.join(f'<td>{v}</td>' for v in row) + '</tr>\n' for row in rows)
    head = ''.join(f'<th>{v}</th>' for v in head)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}</table></div>'


def plot(c: dict, x_label: str):
    from bokeh.models import CustomJSTickFormatter, NumeralTickFormatter
    from bokeh.plotting import figure

    p = figure(height=340, sizing_mode='stretch_width', tools='pan,wheel_zoom,box_zoom,reset', toolbar_location='above')
    p.toolbar.logo = None
    p.toolbar.active_drag = None  # a finger that scrolls the page must not move the plot
    p.toolbar.active_scroll = None
    short = NumeralTickFormatter(format='0.[00]a')
    p.xaxis.formatter = short if x_label != 'FLOPs' else CustomJSTickFormatter(code='return tick.toExponential(1)')
    p.xaxis.ticker.desired_num_ticks = 4  # room for the labels on a phone
    p.xaxis.axis_label, p.yaxis.axis_label = x_label, c['metric']
    return p


def curves(c: dict, found: list, axis: str, name: str):
    from bokeh.models import ColumnDataSource, HoverTool

    p, lines, of = plot(c, name), [], colors(c)
    for x in found:
        color, data = of[x.arm], outcomes.curve(x, axis)
        label = f'{x.name}, lr {x.lr:g}'
        source = ColumnDataSource(data | dict(arm=[label] * len(data['x'])))
        p.varea('x', 'low', 'high', source=source, color=color, alpha=0.2, legend_label=label)
        lines.append(p.line('x', 'mean', source=source, color=color, line_width=2, legend_label=label))
        lines.append(p.scatter('x', 'mean', source=source, color=color, size=5, legend_label=label))
    tip = [('', '@arm'), (name, '@x{0.[000]a}'), (c['metric'], '@mean{0.0000} [@low{0.0000}, @high{0.0000}]')]
    p.add_tools(HoverTool(renderers=lines[1::2], tooltips=tip))
    p.legend.click_policy = 'hide'
    p.legend.label_text_font_size = '9pt'
    p.legend.padding = p.legend.margin = 0
    p.add_layout(p.legend[0], 'below')  # inside it would cover points that a finger cannot reach then
    p.height += 24 * len(found)
    return p


def front(c: dict, found: list, name: str):
    """Cells by cost and figure, with the front of those that nothing beats in both."""
    from bokeh.models import ColumnDataSource, HoverTool

    p, points = plot(c, name), pareto_points(found, name)
    of = colors(c)
    data = dict(
        x=[cost for _, cost, _ in points],
        y=[loss for _, _, loss in points],
        arm=[x.name for x, _, _ in points],
        color=[of[x.arm] for x, _, _ in points],
    )
    best = [points[i] for i in pareto([q[1:] for q in points])]
    p.step([q[1] for q in best], [q[2] for q in best], mode='after', color='gray', line_dash='dashed')
    dots = p.scatter('x', 'y', source=ColumnDataSource(data), color='color', size=11)
    p.add_tools(
        HoverTool(renderers=[dots], tooltips=[('', '@arm'), (name, '@x{0,0.[00]}'), (c['metric'], '@y{0.0000}')])
    )
    return p
