from itertools import pairwise
from xml.etree import ElementTree

from training.affect.plot import risk_coverage_svg


def test_every_curve_is_a_line_inside_the_picture() -> None:
    curve = [{"coverage": c / 20, "risk": c / 40} for c in range(1, 21)]
    root = ElementTree.fromstring(risk_coverage_svg({"text": curve, "audio": curve[:3]}))
    _, _, width, height = (float(v) for v in root.attrib["viewBox"].split())
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [20, 3]
    points = [tuple(map(float, p.split(","))) for p in lines[0].attrib["points"].split()]
    assert all(0 < x < width and 0 < y < height for x, y in points)
    assert all(right > left and up < down for (left, down), (right, up) in pairwise(points))
