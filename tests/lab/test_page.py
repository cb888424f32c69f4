"""The page of a comparison in a real browser: it stands alone, fits a phone, and its plots say what the logs say."""

import shutil

import pytest
from conftest import ROOT

from lab import outcomes, page, tables

FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update']


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: the page is not tested')
    path = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not path:
        pytest.skip('no chromium on this machine (.ci/run installs it): the page is not tested')
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=FLAGS)
        yield b
        b.close()


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """The page of committed results, with four arms."""
    out = tmp_path_factory.mktemp('page') / 'index.html'
    page.write_page('expansion_250', *outcomes.load(ROOT / 'results' / 'expansion_250'), out)
    return out


@pytest.fixture
def opened(browser, file):
    """opened(width) -> the page in a window of that width, with what it asked for and complained about."""
    pages = []

    def go(width, **context):
        p = browser.new_context(viewport=dict(width=width, height=844), **context).new_page()
        pages.append(p)
        p.asked, p.complaints = [], []
        p.on('request', lambda r: p.asked.append(r.url))
        p.on('pageerror', lambda e: p.complaints.append(str(e)))
        p.on('console', lambda m: m.type in ('error', 'warning') and p.complaints.append(m.text))
        p.goto(file.as_uri())
        p.wait_for_function('window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle')
        return p

    yield go
    for p in pages:
        p.context.close()


@pytest.mark.parametrize('width', [390, 1200])
def test_the_page_stands_alone_and_fits_the_screen(opened, file, width):
    p = opened(width)
    assert p.asked == [file.as_uri()] and not p.complaints
    assert p.evaluate('document.documentElement.scrollWidth') <= width
    boxes = [d.bounding_box() for d in p.locator('.plot').all()]
    assert len(boxes) == 6 and all(b['width'] > 0.8 * min(width, 1100) and b['height'] > 300 for b in boxes)
    assert file.stat().st_size < 2e6


def test_its_plots_and_table_hold_the_figures_of_the_logs(opened):
    c, found = outcomes.load(ROOT / 'results' / 'expansion_250')
    p = opened(1200)
    shown = p.evaluate("""[...Bokeh.index].flatMap(v => v.model.renderers ?? [])
        .map(r => r.data_source?.data ?? {})
        .filter(d => d.mean).map(d => [d.arm[0], [...d.mean]])""")
    for x in found:
        mean = outcomes.curve(x, 'iter')['mean']
        assert [x.name + f', lr {x.lr:g}', pytest.approx(mean)] in shown
        assert tables.center(c, x) in p.locator('table').inner_text()
    assert 'better by worth' in p.locator('body').inner_text()


def test_pointing_shows_a_figure_and_a_tap_on_the_legend_hides_its_arm(opened):
    p = opened(390, has_touch=True)
    x, y = p.evaluate("""(() => { const f = [...Bokeh.index][0].frame
        return [f.x_scale.compute(250), f.y_scale.compute(2.0749)] })()""")
    first = p.locator('.plot').first
    first.scroll_into_view_if_needed()
    box = first.bounding_box()
    p.mouse.move(box['x'] + x, box['y'] + y)
    p.locator('.bk-Tooltip').get_by_text('2.0749').wait_for(timeout=5000)
    visible = '[...Bokeh.index][0].model.renderers.map(r => r.visible)'
    assert all(p.evaluate(visible))
    p.mouse.move(0, 0)
    first.get_by_text('dense, lr 0.001').last.tap()
    p.wait_for_function(f'{visible}.filter(v => !v).length == 3')  # band, line and points of one arm


@pytest.mark.parametrize('arms', [1, 4])
def test_the_legend_takes_no_room_from_the_plot(arms):
    """It lies below, a line for every arm, so that with more arms the figure is higher."""
    pytest.importorskip('bokeh')
    c, found = outcomes.load(ROOT / 'results' / 'expansion_250')
    p = page.curves(c, found[:arms], 'iter', 'iterations')
    assert p.height == page.plot(c, 'iterations').height + 24 * arms and len(p.legend[0].items) == arms
    assert p.legend[0] in p.below


def test_a_plot_takes_costs_that_a_browser_has_no_integer_for():
    """FLOPs beyond 2^53 are ints in the logs; Bokeh warned of each."""
    pytest.importorskip('bokeh')
    c, found = outcomes.load(ROOT / 'results' / 'kronecker_gutenberg_81m')
    x = outcomes.curve(found[0], 'flops')['x']
    assert max(x) > 2**53 and all(isinstance(v, float) for v in x)
