"""3 x 3 convolutions of small boards with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3), compiled.

Lavin and Gray 2016, "Fast algorithms for convolutional neural networks". A board is cut into tiles of 4 x 4 cells; each
tile, with a margin of one cell, becomes 36 numbers per channel, in which convolution is one matrix product per number.
Results differ from those of a plain convolution by rounding, a few times 1e-5 of the largest.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zero.jit import njit
from zero.networks.vectors import LANES, Vector, load, multiply_add, positive_part, splat, store

Floats = NDArray[np.float32]

TILE = 4
POINTS = TILE + 2
NUM_PRODUCTS = POINTS * POINTS

INPUT_MULTIPLE = LANES
"""Channels that a convolution reads are filled up to a multiple of this."""
OUTPUT_MULTIPLE = 2 * LANES
"""Channels that it writes are filled up to a multiple of this."""
_ROWS = 4
_BLOCK_BYTES = 400_000
"""Of the tiles in work at once, before and after the products: with the weights they should fit a core's L2 cache."""

_WEIGHT_TRANSFORM = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)


class Board(NamedTuple):
    """The board that is convolved."""

    height: int
    width: int
    tile_rows: int
    tile_columns: int


class Layer(NamedTuple):
    """One convolution, made ready.

    Attributes:
        weights: [36 * inputs * outputs], per point of a tile a matrix [inputs, outputs].
        inputs: channels read, a multiple of INPUT_MULTIPLE.
        outputs: channels written, a multiple of OUTPUT_MULTIPLE.
    """

    weights: Floats
    inputs: int
    outputs: int


class Scratch(NamedTuple):
    """Room for the tiles of the boards in work at once.

    Attributes:
        padded: one board of `inputs` channels with its margins; these are 0 and stay so.
        points: [36, tiles, inputs].
        products: [36, tiles, outputs].
        tile: one tile of LANES channels.
        result: one board of `outputs` channels.
        games: boards in work at once.
    """

    padded: Floats
    points: Floats
    products: Floats
    tile: Floats
    result: Floats
    games: int


class _Place(NamedTuple):
    """Where the tiles of one board are: rows `first_row` and on of `rows`."""

    game: int
    first_row: int
    rows: int


def make_board(height: int, width: int) -> Board:
    """The board with its tiles; those at the lower and right edges may reach over it."""
    return Board(height, width, -(-height // TILE), -(-width // TILE))


def make_layer(weight: Tensor, lying: int = 0) -> Layer:
    """From the weight [O, I, 3, 3] of a convolution with a padding of one cell.

    Args:
        weight: of the convolution.
        lying: channels that its input has in memory, if that is more than its own need: what another layer writes is
            filled up to a larger multiple than what a layer must read.
    """
    outputs, inputs = weight.shape[:2]
    padded = filled_up(max(inputs, lying), INPUT_MULTIPLE), filled_up(outputs, OUTPUT_MULTIPLE)
    transformed = np.einsum("ai,ocij,bj->abco", _WEIGHT_TRANSFORM, weight.double().numpy(), _WEIGHT_TRANSFORM)
    weights = zeros(NUM_PRODUCTS * padded[0] * padded[1])
    weights.reshape(POINTS, POINTS, *padded)[:, :, :inputs, :outputs] = transformed
    return Layer(weights, *padded)


def make_scratch(board: Board, layer: Layer) -> Scratch:
    """Room for this layer and all of the same size, used one after the other."""
    tiles = board.tile_rows * board.tile_columns
    games = max(1, _BLOCK_BYTES // (4 * NUM_PRODUCTS * tiles * (layer.inputs + layer.outputs)))
    rows = filled_up(games * tiles, _ROWS)
    return Scratch(
        padded=zeros((TILE * board.tile_rows + 2) * (TILE * board.tile_columns + 2) * layer.inputs),
        points=zeros(NUM_PRODUCTS * rows * layer.inputs),
        products=zeros(NUM_PRODUCTS * rows * layer.outputs),
        tile=zeros(NUM_PRODUCTS * LANES),
        result=zeros(board.height * board.width * layer.outputs),
        games=games,
    )


def zeros(size: int) -> Floats:
    """Zeros [size] that begin at a cache line, as vectors are best read."""
    return torch.zeros(size).numpy()


def filled_up(number: int, multiple: int) -> int:
    """The least multiple that is not below the number."""
    return -(-number // multiple) * multiple


@njit
def channels_last(encoded: Floats, channels: int, padded_channels: int, planes: Floats) -> None:
    """Copy planes [B, channels * cells + more], one after the other, to [B * cells * padded_channels]."""
    games = encoded.shape[0]
    cells = planes.shape[0] // (games * padded_channels)
    for game in range(games):
        for channel in range(channels):
            for cell in range(cells):
                planes[(game * cells + cell) * padded_channels + channel] = encoded[game, channel * cells + cell]


@njit
def convolve(
    board: Board,
    layer: Layer,
    scratch: Scratch,
    boards: Floats,
    offsets: Floats,
    skipped: Floats,
    output: Floats,
    means: Floats,
) -> None:
    """Set output to relu(convolution(boards) + offsets + skipped), and means to its mean over the cells.

    Args:
        board: its geometry.
        layer: the convolution.
        scratch: made for this layer among others.
        boards: [B * cells * inputs].
        offsets: [B * outputs], the bias and whatever else is added to all cells alike.
        skipped: [B * cells * outputs], or empty for nothing.
        output: [B * cells * outputs], may be `boards` or `skipped` themselves.
        means: [B * outputs].
    """
    games: int = offsets.shape[0] // layer.outputs
    tiles, cells = board.tile_rows * board.tile_columns, board.height * board.width
    for first in range(0, games, scratch.games):
        count = min(scratch.games, games - first)
        rows = (count * tiles + _ROWS - 1) // _ROWS * _ROWS
        for game in range(count):
            _to_points(board, layer.inputs, scratch, boards, _Place(first + game, game * tiles, rows))
        _multiply(layer, scratch.points, scratch.products, rows)
        for game in range(count):
            place = _Place(first + game, game * tiles, rows)
            _from_points(board, layer.outputs, scratch, offsets, place)
            _finish(cells, layer.outputs, scratch.result, skipped, output, means, first + game)


@njit
def _at_points(a: Vector, b: Vector, c: Vector, d: Vector, e: Vector, f: Vector) -> tuple[Vector, ...]:
    """Six cells in a line as values at the six points, 0, 1, -1, 2, -2 and infinity."""
    even_1, odd_1 = multiply_add(splat(-4), c, e), multiply_add(splat(-4), b, d)
    even_2, odd_2 = e - c, d - b
    return (
        multiply_add(splat(4), a, multiply_add(splat(-5), c, e)),
        even_1 + odd_1,
        even_1 - odd_1,
        multiply_add(splat(2), odd_2, even_2),
        multiply_add(splat(-2), odd_2, even_2),
        multiply_add(splat(4), b, multiply_add(splat(-5), d, f)),
    )


@njit
def _to_points(board: Board, channels: int, scratch: Scratch, boards: Floats, place: _Place) -> None:
    """Enter the tiles of one board in `points`."""
    padded, tile = scratch.padded, scratch.tile
    line = (TILE * board.tile_columns + 2) * channels
    for y in range(board.height):
        source = (place.game * board.height + y) * board.width * channels
        target = (y + 1) * line + channels
        for k in range(0, board.width * channels, LANES):
            store(padded, target + k, load(boards, source + k))
    for number in range(board.tile_rows * board.tile_columns):
        corner = number // board.tile_columns * TILE * line + number % board.tile_columns * TILE * channels
        for channel in range(0, channels, LANES):
            for x in range(POINTS):
                cells = _load_six(padded, corner + x * channels + channel, line)
                _store_six(tile, x * LANES, POINTS * LANES, _at_points(*cells))
            for y in range(POINTS):
                cells = _load_six(tile, y * POINTS * LANES, LANES)
                k = (y * POINTS * place.rows + place.first_row + number) * channels + channel
                _store_six(scratch.points, k, place.rows * channels, _at_points(*cells))


@njit
def _multiply(layer: Layer, points: Floats, products: Floats, rows: int) -> None:
    """Set products [36, rows, outputs] to points [36, rows, inputs] @ weights; `rows` is a multiple of 4."""
    inputs, outputs, weights = layer.inputs, layer.outputs, layer.weights
    for number in range(NUM_PRODUCTS):
        for row in range(0, rows, _ROWS):
            left = (number * rows + row) * inputs
            for column in range(0, outputs, OUTPUT_MULTIPLE):
                # The sums of four rows and two vectors of columns stay in registers.
                a0 = b0 = a1 = b1 = a2 = b2 = a3 = b3 = splat(0)
                right = number * inputs * outputs + column
                for k in range(left, left + inputs):
                    a, b = load(weights, right), load(weights, right + LANES)
                    right += outputs
                    point = splat(points[k])
                    a0, b0 = multiply_add(point, a, a0), multiply_add(point, b, b0)
                    point = splat(points[k + inputs])
                    a1, b1 = multiply_add(point, a, a1), multiply_add(point, b, b1)
                    point = splat(points[k + 2 * inputs])
                    a2, b2 = multiply_add(point, a, a2), multiply_add(point, b, b2)
                    point = splat(points[k + 3 * inputs])
                    a3, b3 = multiply_add(point, a, a3), multiply_add(point, b, b3)
                k = (number * rows + row) * outputs + column
                _store_pair(products, k, a0, b0)
                _store_pair(products, k + outputs, a1, b1)
                _store_pair(products, k + 2 * outputs, a2, b2)
                _store_pair(products, k + 3 * outputs, a3, b3)


@njit
def _from_points(board: Board, channels: int, scratch: Scratch, offsets: Floats, place: _Place) -> None:
    """Make the cells of one board from its tiles in `products`, with its offsets added, in `result`."""
    tile, products, result = scratch.tile, scratch.products, scratch.result
    two, four, eight = splat(2), splat(4), splat(8)
    stride = POINTS * place.rows * channels
    for number in range(board.tile_rows * board.tile_columns):
        top, left = number // board.tile_columns * TILE, number % board.tile_columns * TILE
        width = board.width - left
        for channel in range(0, channels, LANES):
            offset = load(offsets, place.game * channels + channel)
            for x in range(POINTS):
                k = (x * place.rows + place.first_row + number) * channels + channel
                b, c = load(products, k + stride), load(products, k + 2 * stride)
                d, e = load(products, k + 3 * stride), load(products, k + 4 * stride)
                sum_1, difference_1, sum_2, difference_2 = b + c, b - c, d + e, d - e
                k2 = x * LANES
                store(tile, k2, load(products, k) + sum_1 + sum_2)
                store(tile, k2 + POINTS * LANES, multiply_add(two, difference_2, difference_1))
                store(tile, k2 + 2 * POINTS * LANES, multiply_add(four, sum_2, sum_1))
                last = load(products, k + 5 * stride)
                store(tile, k2 + 3 * POINTS * LANES, multiply_add(eight, difference_2, difference_1) + last)
            for y in range(min(TILE, board.height - top)):
                k = y * POINTS * LANES
                b, c = load(tile, k + LANES), load(tile, k + 2 * LANES)
                d, e = load(tile, k + 3 * LANES), load(tile, k + 4 * LANES)
                first, last = load(tile, k), load(tile, k + 5 * LANES)
                sum_1, difference_1, sum_2, difference_2 = b + c, b - c, d + e, d - e
                k = ((top + y) * board.width + left) * channels + channel
                store(result, k, offset + first + sum_1 + sum_2)
                if width > 1:
                    store(result, k + channels, offset + multiply_add(two, difference_2, difference_1))
                if width > 2:
                    store(result, k + 2 * channels, offset + multiply_add(four, sum_2, sum_1))
                if width > 3:
                    store(result, k + 3 * channels, offset + multiply_add(eight, difference_2, difference_1) + last)


@njit
def _finish(
    cells: int, channels: int, result: Floats, skipped: Floats, output: Floats, means: Floats, game: int
) -> None:
    """Add what is skipped, if anything, to one board, cut it off at 0, and average it."""
    adds = skipped.shape[0] > 0
    for channel in range(0, channels, LANES):
        total = splat(0)
        for cell in range(cells):
            k = cell * channels + channel
            value = load(result, k)
            k += game * cells * channels
            if adds:
                value = value + load(skipped, k)
            value = positive_part(value)
            store(output, k, value)
            total = total + value
        store(means, game * channels + channel, multiply_add(total, splat(1 / cells), splat(0)))


@njit
def _load_six(array: Floats, k: int, stride: int) -> tuple[Vector, ...]:
    return (
        load(array, k),
        load(array, k + stride),
        load(array, k + 2 * stride),
        load(array, k + 3 * stride),
        load(array, k + 4 * stride),
        load(array, k + 5 * stride),
    )


@njit
def _store_six(array: Floats, k: int, stride: int, values: tuple[Vector, ...]) -> None:
    _store_pair_apart(array, k, stride, values[0], values[1])
    _store_pair_apart(array, k + 2 * stride, stride, values[2], values[3])
    _store_pair_apart(array, k + 4 * stride, stride, values[4], values[5])


@njit
def _store_pair_apart(array: Floats, k: int, stride: int, first: Vector, second: Vector) -> None:
    store(array, k, first)
    store(array, k + stride, second)


@njit
def _store_pair(array: Floats, k: int, first: Vector, second: Vector) -> None:
    _store_pair_apart(array, k, LANES, first, second)
