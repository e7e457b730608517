import numpy as np
import pytest

from autoq.numerics.cost import conv_macs, conv_transpose_macs, matmul_macs, modelled_ratio


def test_by_hand():
    assert conv_macs((64, 64, 3, 3), (8, 8)) == 64 * 64 * 9 * 64
    assert conv_macs((32, 1, 3, 3), (7, 5), groups=32) == 32 * 9 * 35  # depthwise
    assert conv_macs((8, 4, 5), (100,), batch=2) == 2 * 8 * 4 * 5 * 100  # 1-D
    assert conv_transpose_macs((6, 4, 3, 3), (5, 5)) == 25 * 6 * 4 * 9
    assert matmul_macs(64, 384, 1536) == 64 * 384 * 1536


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_counted_one_product_at_a_time(groups):
    out_channels, in_channels, kernel, size, stride = 4, 8, 3, 9, 2
    output = (size - kernel) // stride + 1
    count = 0
    for _ in np.ndindex(out_channels, output, output):
        count += in_channels // groups * kernel * kernel
    assert conv_macs((out_channels, in_channels // groups, kernel, kernel), (output, output), groups) == count


def test_resnet20_has_forty_million():
    shapes = [((16, 3, 3, 3), (32, 32))] + [((16, 16, 3, 3), (32, 32))] * 6
    shapes += [((32, 16, 3, 3), (16, 16))] + [((32, 32, 3, 3), (16, 16))] * 5
    shapes += [((64, 32, 3, 3), (8, 8))] + [((64, 64, 3, 3), (8, 8))] * 5
    total = sum(conv_macs(*shape) for shape in shapes) + matmul_macs(1, 64, 10)
    assert total == pytest.approx(40.6e6, rel=0.01)  # He et al. 2016 with shortcuts without weights


def test_modelled_ratio_by_hand():
    assert modelled_ratio([100, 300], [1.0, 0.5]) == 0.625
    assert modelled_ratio([100, 300], [1.0, 0.5], other_share=0.2) == pytest.approx(0.2 + 0.8 * 0.625)
    assert modelled_ratio([5, 7], [1.0, 1.0], other_share=0.3) == 1.0
    assert modelled_ratio([], []) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv_macs((8, 4, 3, 3), (5,)), "does not fit"),
        (lambda: conv_macs((8, 4, 3, 3), (5, 5), groups=3), "3 groups"),
        (lambda: conv_transpose_macs((8, 4, 3, 3), (5, 5), groups=0), "0 groups"),
        (lambda: matmul_macs(-1, 2, 3), "negative"),
        (lambda: modelled_ratio([1], [1, 2]), "1 layers"),
        (lambda: modelled_ratio([1], [1], other_share=1.5), "1.5"),
        (lambda: modelled_ratio([1], [float("nan")]), "finite"),
    ],
)
def test_bad_figures_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
