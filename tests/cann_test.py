#!/usr/bin/env python3
"""The operators of the stand-in of CANN's libraries against NumPy, over many shapes, strides and data types.

Results of the two must agree to the last bit of the output's data type: both compute in double and round
once. Sums may differ in their last bits before rounding, so that a tie may go the other way: one unit in the
last place is allowed there.
"""
import math
import os
import sys
import unittest

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "cann"))
from standin import I8, NZ, Array, Cann, CannError, Scalar, from_bf16, nz_of, to_bf16

os.environ.setdefault("CANN_STANDIN_DELAY_US", "0")
os.environ.setdefault("CANN_STANDIN_SILENT", "1")
cann = Cann(os.environ.get("BUILD", "build"))
random = np.random.default_rng(4)
FLOATS = ("f32", "f16", "bf16")
ULP = {"f32": 2.0 ** -23, "f16": 2.0 ** -10, "bf16": 2.0 ** -7}


def draw(*shape, dtype="f32", scale=1.0):
    """Values that dtype holds exactly."""
    return rounded(random.standard_normal(shape) * scale, dtype)


def rounded(values, dtype):
    values = np.asarray(values, np.float64)
    if dtype == "bf16":
        return from_bf16(to_bf16(values))
    return values.astype({"f32": np.float32, "f16": np.float16}[dtype]).astype(np.float64)


def gapped(values, dtype, gap=3, offset=5):
    """The values on the device, rows apart by `gap` elements and not at the start of their storage."""
    *outer, width = values.shape
    rows = int(np.prod(outer, dtype=np.int64))
    flat = np.full(offset + rows * (width + gap), 7.0)
    for i, row in enumerate(values.reshape(rows, width)):
        flat[offset + i * (width + gap):][:width] = row
    whole = cann.put(flat, dtype)
    strides, step = [1], width + gap
    for n in reversed(outer):
        strides.insert(0, step)
        step *= n
    return Array(whole.memory, values.shape, dtype, strides, offset, count=flat.size)


class Operators(unittest.TestCase):
    def agree(self, array, expected, ulps=1):
        """What is on the device is `expected`, rounded to its data type."""
        got = cann.get(array).astype(np.float64)
        dtype = array.dtype
        self.assertEqual(got.shape, np.shape(expected))
        if dtype not in ULP:
            np.testing.assert_array_equal(got, expected)
            return
        want = rounded(expected, dtype)
        tiny = {"f32": 2.0 ** -149, "f16": 2.0 ** -24, "bf16": 2.0 ** -133}[dtype]
        with np.errstate(invalid="ignore"):
            off = np.abs(got - want) > ulps * np.maximum(np.abs(want) * ULP[dtype], tiny)
        off &= ~((got == want) | (np.isnan(got) & np.isnan(want)))
        self.assertFalse(off.any(), f"{got[off][:4]} for {want[off][:4]}")
        self.assertEqual(cann.counter("faults"), 0)

    def refuse(self, code, name, *arguments):
        with self.assertRaises(CannError) as caught:
            cann.op(name, *arguments)
        self.assertEqual(caught.exception.code, code, str(caught.exception))

    # ---- element by element ----

    def test_one_operand(self):
        formulas = {"Silu": lambda x: x / (1 + np.exp(-x)), "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
                    "Sin": np.sin, "Cos": np.cos, "Tanh": np.tanh}
        for name, formula in formulas.items():
            for dtype in FLOATS:
                x = draw(3, 7, dtype=dtype, scale=4)
                y = cann.empty((3, 7), dtype)
                cann.op(name, gapped(x, dtype), y)
                self.agree(y, formula(x))

    def test_gelu_and_clamp(self):
        for dtype in FLOATS:
            x = draw(3, 7, dtype=dtype, scale=4)
            y = cann.empty((3, 7), dtype)
            cann.op("GeluV2", gapped(x, dtype), 1, y)
            self.agree(y, 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3))), ulps=2)
            cann.op("GeluV2", gapped(x, dtype), 0, y)
            erf = np.vectorize(math.erf)
            self.agree(y, 0.5 * x * (1 + erf(x / np.sqrt(2))), ulps=2)
            for low, high in ((-1, 2), (None, 1.5), (-0.5, None)):
                bounds = [None if bound is None else Scalar(bound) for bound in (low, high)]
                cann.op("Clamp", gapped(x, dtype), *bounds, y)
                self.agree(y, np.clip(x, low, high))
        y = cann.empty((2,))
        cann.op("Clamp", cann.put([np.nan, 9.0]), Scalar(-1), Scalar(1), y)
        self.agree(y, [np.nan, 1])
        self.refuse(161002, "Clamp", y, None, None, y)
        self.refuse(161002, "GeluV2", y, 2, y)

    def test_two_operands_broadcast(self):
        for dtype in FLOATS:
            for a, b, out in (((4, 5), (4, 5), (4, 5)), ((4, 5), (5,), (4, 5)), ((2, 1, 3), (4, 1), (2, 4, 3))):
                x, y = draw(*a, dtype=dtype), draw(*b, dtype=dtype)
                for name, arguments, expected in (
                        ("Add", (Scalar(1),), x + y), ("Add", (Scalar(-0.5),), x - 0.5 * y),
                        ("Sub", (Scalar(2),), x - 2 * y), ("Mul", (), x * y), ("Div", (), x / y)):
                    result = cann.empty(out, dtype)
                    cann.op(name, gapped(x, dtype), cann.put(y, dtype), *arguments, result)
                    self.agree(result, expected)

    def test_in_place(self):
        x, y = draw(4, 6), draw(6)
        for name, arguments, expected in (
                ("InplaceAdd", (y, Scalar(3)), x + 3 * y), ("InplaceMul", (y,), x * y),
                ("InplaceMuls", (Scalar(0.25),), x * 0.25), ("InplaceAdds", (Scalar(2), Scalar(3)), x + 6),
                ("InplaceFillScalar", (Scalar(-1.5),), np.full((4, 6), -1.5)), ("InplaceZero", (), x * 0)):
            target = gapped(x, "f32")
            cann.op(name, target, *[cann.put(a) if isinstance(a, np.ndarray) else a for a in arguments])
            self.agree(target, expected)
            between = cann.raw(target)[5:].reshape(4, 9)[:, 6:]
            np.testing.assert_array_equal(between, 7)    # gaps stay

    def test_numbers(self):
        x = draw(3, 4, dtype="bf16")
        y = cann.empty((3, 4), "bf16")
        cann.op("Muls", cann.put(x, "bf16"), Scalar(3), y)
        self.agree(y, 3 * x)
        cann.op("Adds", cann.put(x, "bf16"), Scalar(3), Scalar(0.5), y)
        self.agree(y, x + 1.5)

    def test_elementwise_refusals(self):
        a, b = cann.put(draw(2, 3)), cann.put(draw(2, 3), "bf16")
        self.refuse(161002, "Add", a, b, Scalar(1), cann.empty((2, 3)))
        self.refuse(161002, "Add", a, a, Scalar(1), cann.empty((3, 2)))
        self.refuse(161002, "Add", a, a, Scalar(1), cann.empty((2, 3), "bf16"))
        self.refuse(161001, "Add", a, a, None, cann.empty((2, 3)))
        self.refuse(161001, "Add", None, a, Scalar(1), cann.empty((2, 3)))
        self.refuse(161002, "Silu", cann.put([1, 2], "i32"), cann.empty((2,), "i32"))
        out_of_storage = Array(a.memory, (2, 3), "f32", offset=1, count=6)
        self.refuse(161002, "Silu", out_of_storage, cann.empty((2, 3)))
        self.refuse(161002, "Silu", Array(a.memory, (2, 3), "f32", form=NZ, storage=(1, 1, 16, 8)),
                    cann.empty((2, 3)))

    # ---- rounding ----

    def test_rounding_is_once_and_to_the_nearest(self):
        x = np.concatenate([random.standard_normal(4000) * 10.0 ** random.integers(-9, 9, 4000),
                            [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519, 65520, 3.4e38, -3.4e38, 2.0 ** -24,
                             2.0 ** -25, 3 * 2.0 ** -26, 2.0 ** -14 - 2.0 ** -26, 1 + 2.0 ** -8, 1 + 3 * 2.0 ** -8,
                             1 + 2.0 ** -8 + 2.0 ** -30]]).astype(np.float32)
        with np.errstate(over="ignore"):
            for dtype, bits in (("f16", x.astype(np.float16).view(np.uint16)), ("bf16", to_bf16(x))):
                y = cann.empty(x.shape, dtype)
                cann.op("Cast", cann.put(x), {"f16": 1, "bf16": 27}[dtype], y)
                got = cann.raw(y).view(np.uint16)
                nan = np.isnan(x)
                np.testing.assert_array_equal(got[~nan], bits[~nan])
                back = cann.empty(x.shape)
                cann.op("InplaceCopy", back, y)
                np.testing.assert_array_equal(np.isnan(cann.get(back)), nan)

    # ---- products ----

    def test_products(self):
        for dtype in FLOATS:
            for m, k, n in ((1, 1, 1), (1, 16, 5), (3, 17, 31), (5, 100, 33), (16, 64, 16)):
                a, b = draw(m, k, dtype=dtype), draw(k, n, dtype=dtype)
                for out in {dtype, "f32"}:
                    for mat2 in (cann.put(b, dtype), cann.put(b.T, dtype).transposed(), gapped(b, dtype)):
                        y = cann.empty((m, n), out)
                        cann.op("Mm", gapped(a, dtype), mat2, y, I8(0))
                        self.close(y, a, b)

    def close(self, array, a, b):
        """A sum's order is free: its error is bounded by that of double, and one rounding."""
        got, want = cann.get(array).astype(np.float64), np.matmul(a, b)
        bound = np.matmul(np.abs(a), np.abs(b)) * 2.0 ** -45 + np.abs(want) * ULP[array.dtype]
        self.assertTrue((np.abs(got - want) <= bound).all())

    def test_products_of_batches(self):
        for x, y in (((2, 3, 4), (2, 4, 5)), ((2, 3, 4), (1, 4, 5)), ((1, 3, 4), (2, 4, 5))):
            a, b = draw(*x), draw(*y)
            out = cann.empty((2, 3, 5))
            cann.op("BatchMatMul", cann.put(a), cann.put(np.swapaxes(b, 1, 2)).transposed(), out, I8(0))
            self.close(out, a, b)
        a, b = draw(2, 1, 3, 4), draw(5, 4, 6)
        out = cann.empty((2, 5, 3, 6))
        cann.op("Matmul", cann.put(a), cann.put(b), out, I8(0))
        self.close(out, a, b)

    def test_products_with_nz(self):
        for dtype in ("f16", "bf16"):
            for m, k, n in ((1, 16, 16), (3, 32, 48), (2, 17, 33), (4, 100, 20)):
                a, b = draw(m, k, dtype=dtype), draw(k, n, dtype=dtype)
                for swapped in (False, True):
                    y = cann.empty((m, n))
                    cann.op("MatmulWeightNz", cann.put(a, dtype), cann.put_nz(b, dtype, swapped), y, I8(0))
                    self.close(y, a, b)
            a, b = draw(3, 2, 20, dtype=dtype), draw(3, 20, 18, dtype=dtype)
            y = cann.empty((3, 2, 18), dtype)
            cann.op("BatchMatMulWeightNz", cann.put(a, dtype), cann.put_nz(b, dtype), y, I8(0))
            self.close(y, a, b)

    def test_product_refusals(self):
        a, b, y = cann.put(draw(2, 32), "bf16"), cann.put(draw(32, 16), "bf16"), cann.empty((2, 16))
        nz = cann.put_nz(draw(32, 16), "bf16")
        cann.op("Mm", a, b, y, I8(0))
        self.refuse(161002, "Mm", a, cann.put(draw(32, 16)), y, I8(0))      # data types
        self.refuse(161002, "Mm", a, cann.put(draw(16, 32), "bf16"), y, I8(0))      # inner dims
        self.refuse(161002, "Mm", a, b, cann.empty((2, 15)), I8(0))
        self.refuse(161002, "Mm", a, b, y, I8(2))      # USE_FP16 with BF16
        self.refuse(161002, "Mm", a, b, y, I8(3))      # USE_HF32 without FLOAT
        self.refuse(161002, "Mm", a, b, y, I8(5))
        self.refuse(161002, "Mm", a, nz, y, I8(0))     # a format that the documents don't name
        gaps = Array(cann.empty((2, 20)).memory, (2, 16), "f32", (20, 1), 0, count=40)
        self.refuse(161002, "Mm", a, b, gaps, I8(0))
        self.refuse(161002, "MatmulWeightNz", a, b, y, I8(0))
        for storage in ((2, 1, 16, 16), (1, 1, 16, 16), (1, 2, 16, 8), (512,), (1, 1, 2, 16, 16)):
            wrong = Array(nz.memory, (32, 16), "bf16", form=NZ, storage=storage)
            self.refuse(161002, "MatmulWeightNz", a, wrong, y, I8(0))
        gaps = Array(nz.memory, (32, 16), "bf16", (17, 1), form=NZ, storage=nz.storage)
        self.refuse(161002, "MatmulWeightNz", a, gaps, y, I8(0))
        column = cann.put_nz(draw(32, 1), "bf16")
        self.refuse(161002, "MatmulWeightNz", a, column, cann.empty((2, 1)), I8(0))
        self.refuse(161002, "MatmulWeightNz", cann.put(draw(2, 32)), nz, y, I8(0))

    # ---- FRACTAL_NZ ----

    def test_nz_of_the_reference(self):
        """Section 4.1 of the facts: value = row * width + column."""
        x = np.arange(16 * 32.0).reshape(16, 32)
        out = nz_of(x, 16).ravel()
        np.testing.assert_array_equal(out[:16], x[0, :16])
        self.assertEqual((out[16], out[256]), (x[1, 0], x[0, 16]))
        x = np.arange(17 * 17.0).reshape(17, 17) % 256 + 1
        out = nz_of(x, 16).ravel()
        self.assertEqual(out.size, 1024)
        self.assertEqual(out[256], x[16, 0])
        np.testing.assert_array_equal(out[257:272], x[16, 1:16])
        self.assertEqual((out[272], out[512], out[513], out[768]), (0, x[0, 16], 0, x[16, 16]))

    def test_format_casts(self):
        for dtype, c0 in (("f16", 16), ("bf16", 16), ("i8", 32), ("f32", 8)):
            for shape in ((16, 32), (17, 17), (1, 5), (3, 20, 40)):
                x = random.integers(-100, 100, shape)
                plain = cann.put(x, dtype)
                blocks = nz_of(x, c0)
                padded = cann.empty(blocks.shape, dtype)
                nz = Array(padded.memory, shape, dtype, form=NZ, storage=blocks.shape, count=blocks.size)
                before = cann.counter("format_casts")
                cann.op("NpuFormatCast", plain, nz)
                raw = cann.raw(nz)
                got = from_bf16(raw) if dtype == "bf16" else raw
                np.testing.assert_array_equal(got.reshape(blocks.shape), blocks)
                back = cann.empty(shape, dtype)
                cann.op("NpuFormatCast", nz, back)
                np.testing.assert_array_equal(cann.get(back), x)
                self.assertEqual(cann.counter("format_casts"), before + 2)
                self.refuse(161002, "NpuFormatCast", plain, back)

    # ---- lines ----

    def test_rms_norm(self):
        for x_dtype, gamma_dtype in (("f32", "f32"), ("f16", "f16"), ("bf16", "bf16"), ("bf16", "f32")):
            for shape, dims in (((3, 8), 1), ((2, 5, 64), 1), ((4, 1), 1), ((2, 3, 5), 2)):
                x, gamma = draw(*shape, dtype=x_dtype), draw(*shape[-dims:], dtype=gamma_dtype)
                axes = tuple(range(-dims, 0))
                rstd = 1 / np.sqrt((x * x).mean(axes, keepdims=True) + 1e-5)
                y, r = cann.empty(shape, x_dtype), cann.empty(rstd.shape)
                cann.op("RmsNorm", gapped(x, x_dtype), cann.put(gamma, gamma_dtype), 1e-5, y, r)
                self.agree(y, x * rstd * gamma)
                self.agree(r, rstd)
        x = cann.put(draw(2, 8))
        self.refuse(561002, "RmsNorm", x, cann.put(draw(7)), 1e-5, cann.empty((2, 8)), cann.empty((2, 1)))
        self.refuse(561002, "RmsNorm", x, cann.put(draw(8)), 1e-5, cann.empty((2, 8)), cann.empty((1, 1)))
        self.refuse(161001, "RmsNorm", x, cann.put(draw(8)), 1e-5, cann.empty((2, 8)), None)
        self.refuse(161002, "RmsNorm", x, cann.put(draw(8), "f16"), 1e-5, cann.empty((2, 8)), cann.empty((2, 1)))

    def test_softmax(self):
        for dtype in FLOATS:
            for shape, dim in (((3, 7), -1), ((3, 7), 0), ((2, 4, 5), 1), ((6, 1), 1)):
                x = draw(*shape, dtype=dtype, scale=5)
                e = np.exp(x - x.max(dim, keepdims=True))
                y = cann.empty(shape, dtype)
                cann.op("Softmax", gapped(x, dtype), dim, y)
                self.agree(y, e / e.sum(dim, keepdims=True))
        y = cann.empty((2, 3))
        cann.op("Softmax", cann.put([[-np.inf, 0, 0], [1000, 0, -np.inf]]), 1, y)
        self.agree(y, [[0, 0.5, 0.5], [1, 0, 0]])
        self.refuse(161002, "Softmax", cann.put(draw(2, 3)), 2, y)

    def test_swiglu(self):
        for dtype in FLOATS:
            for shape, dim in (((3, 8), -1), ((4, 3), 0), ((2, 3, 4, 5), 2)):
                x = draw(*shape, dtype=dtype, scale=3)
                a, b = np.split(x, 2, dim)
                y = cann.empty(a.shape, dtype)
                cann.op("SwiGlu", cann.put(x, dtype), dim, y)
                self.agree(y, a / (1 + np.exp(-a)) * b)
        x = draw(3, 8)
        self.refuse(161002, "SwiGlu", gapped(x, "f32"), -1, cann.empty((3, 4)))
        self.refuse(161002, "SwiGlu", cann.put(x), -1, cann.empty((3, 5)))

    # ---- rows by number ----

    def test_reading_rows(self):
        for dtype in FLOATS + ("i32",):
            x = random.integers(-9, 9, (7, 5))
            for kind in ("i32", "i64"):
                index = random.integers(0, 7, 4)
                y = cann.empty((4, 5), dtype)
                cann.op("IndexSelect", gapped(x, dtype), 0, cann.put(index, kind), y)
                np.testing.assert_array_equal(cann.get(y), x[index])
                index = random.integers(0, 5, 3)
                y = cann.empty((7, 3), dtype)
                cann.op("IndexSelect", cann.put(x, dtype), -1, cann.put(index, kind), y)
                np.testing.assert_array_equal(cann.get(y), x[:, index])
                index = random.integers(0, 7, (2, 3))
                y = cann.empty((2, 3, 5), dtype)
                cann.op("Embedding", cann.put(x, dtype), cann.put(index, kind), y)
                np.testing.assert_array_equal(cann.get(y), x[index])
                index = random.integers(0, 7, (2, 5))
                y = cann.empty((2, 5), dtype)
                cann.op("Gather", cann.put(x, dtype), 0, cann.put(index, kind), y)
                np.testing.assert_array_equal(cann.get(y), np.take_along_axis(x, index, 0))
        self.refuse(161002, "IndexSelect", cann.put(draw(3, 2)), 0, cann.put([0.0]), cann.empty((1, 2)))
        self.refuse(161002, "IndexSelect", cann.put(draw(3, 2)), 0, cann.put([0, 1], "i32"), cann.empty((1, 2)))

    def test_writing_rows(self):
        x, rows, index = draw(6, 4), draw(3, 4), np.array([5, 0, 2])
        target = gapped(x, "f32")
        cann.op("InplaceIndexCopy", target, 0, cann.put(index, "i32"), gapped(rows, "f32"))
        expected = x.copy()
        expected[index] = rows
        self.agree(target, expected)
        target = cann.put(x)
        cann.op("ScatterNdUpdate", target, cann.put(index[:, None], "i64"), cann.put(rows))
        self.agree(target, expected)
        cann.op("ScatterNdUpdate", target, cann.put([[1, 1], [3, 2]], "i32"), cann.put([10.0, 20.0]))
        expected[1, 1], expected[3, 2] = 10, 20
        self.agree(target, expected)
        self.refuse(161002, "InplaceIndexCopy", target, 0, cann.put([1], "i32"), cann.put(rows))

    # ---- conversions ----

    def test_copies_convert_and_broadcast(self):
        x = draw(3, 4, dtype="f16")
        for dtype in FLOATS:
            target = gapped(np.zeros((3, 4)), dtype)
            cann.op("InplaceCopy", target, cann.put(x.T, "f16").transposed())
            self.agree(target, rounded(x, dtype))
        target = cann.empty((2, 3, 4), "f32")
        cann.op("InplaceCopy", target, cann.put(x, "f16"))
        self.agree(target, np.broadcast_to(x, (2, 3, 4)))
        target = cann.empty((4,), "i32")
        cann.op("Cast", cann.put([1.9, -1.9, 3e9, -0.1]), 3, target)
        np.testing.assert_array_equal(cann.get(target), [1, -1, 2 ** 31 - 1, 0])
        self.refuse(161002, "Cast", cann.put([1.0]), 3, cann.empty((1,)))

    def test_triangles(self):
        for shape in ((4, 4), (2, 3, 5), (5, 2)):
            x = draw(*shape)
            for d in (-7, -2, -1, 0, 1, 3, 9):
                y = cann.empty(shape)
                cann.op("Triu", cann.put(x), d, y)
                self.agree(y, np.triu(x, d))
                cann.op("Tril", cann.put(x), d, y)
                self.agree(y, np.tril(x, d))



    # ---- other places, order, sums ----

    def test_rearranging(self):
        x = draw(2, 3, 4)
        for dims in ((0, 1, 2), (2, 0, 1), (1, -1, 0)):
            y = cann.empty(x.transpose(dims).shape)
            cann.op("Permute", gapped(x, "f32"), dims, y)
            self.agree(y, x.transpose(dims))
        a, b, y = draw(2, 3), draw(4, 3), cann.empty((6, 3))
        cann.op("Cat", [cann.put(a), gapped(b, "f32")], 0, y)
        self.agree(y, np.concatenate([a, b]))
        y = cann.empty((4, 4, 6))
        cann.op("Repeat", cann.put(a), (4, 2, 2), y)
        self.agree(y, np.tile(a, (4, 2, 2)))
        y = cann.empty((2, 3, 2))
        cann.op("Slice", cann.put(x), 2, -3, 9, 2, y)
        self.agree(y, x[:, :, 1::2])
        y = cann.empty((4,), "i32")
        cann.op("Arange", Scalar(3), Scalar(10), Scalar(2), y)
        np.testing.assert_array_equal(cann.get(y), [3, 5, 7, 9])
        self.refuse(161002, "Permute", cann.put(x), (0, 1, 1), cann.empty((2, 3, 3)))
        self.refuse(161002, "Cat", [cann.put(a), cann.put(b)], 1, cann.empty((6, 3)))

    def test_order(self):
        for dtype in FLOATS + ("i32",):
            x = random.integers(-4, 4, (3, 5, 4))    # with equal elements
            for dim in (0, 1, -1):
                rise, fall = np.argsort(x, dim, kind="stable"), np.argsort(-x, dim, kind="stable")
                v, i = cann.empty(x.shape, dtype), cann.empty(x.shape, "i64")
                for order, down in ((rise, False), (fall, True)):
                    cann.op("Sort", cann.put(x, dtype), True, dim, down, v, i)
                    np.testing.assert_array_equal(cann.get(i), order)
                    np.testing.assert_array_equal(cann.get(v), np.take_along_axis(x, order, dim))
                    cann.op("Argsort", cann.put(x, dtype), dim, down, i)
                    np.testing.assert_array_equal(cann.get(i), order)
                k = 2
                best = np.take(fall, range(k), dim)
                v, i = cann.empty(best.shape, dtype), cann.empty(best.shape, "i64")
                cann.op("Topk", cann.put(x, dtype), k, dim, True, True, v, i)
                np.testing.assert_array_equal(cann.get(i), best)
                np.testing.assert_array_equal(cann.get(v), np.take_along_axis(x, best, dim))
                for keep in (False, True):
                    shape = x.max(dim, keepdims=keep).shape
                    v, i = cann.empty(shape, dtype), cann.empty(shape, "i32")
                    cann.op("MaxDim", cann.put(x, dtype), dim, keep, v, i)
                    np.testing.assert_array_equal(cann.get(v), x.max(dim, keepdims=keep))
                    np.testing.assert_array_equal(cann.get(i).ravel(), x.argmax(dim).ravel())
                    cann.op("ArgMax", cann.put(x, dtype), dim, keep, i)
                    np.testing.assert_array_equal(cann.get(i).ravel(), x.argmax(dim).ravel())
        self.refuse(161002, "Topk", cann.put(draw(2, 3)), 4, 1, True, True, cann.empty((2, 4)),
                    cann.empty((2, 4), "i64"))

    def test_sums(self):
        x = draw(2, 3, 4)
        for dims in ((0,), (1, 2), (-1,), (0, 1, 2)):
            for keep in (False, True):
                y = cann.empty(x.sum(dims, keepdims=keep).shape)
                cann.op("ReduceSum", cann.put(x), dims, keep, 0, y)
                self.agree(y, x.sum(dims, keepdims=keep))
                cann.op("Mean", cann.put(x), dims, keep, 0, y)
                self.agree(y, x.mean(dims, keepdims=keep))
        for dim in (0, 1, 2):
            y = cann.empty(x.shape)
            cann.op("Cumsum", cann.put(x), dim, 0, y)
            self.agree(y, x.cumsum(dim))

    def test_choices(self):
        x, mask = draw(3, 4), random.integers(0, 2, (3, 1)).astype(bool)
        y = cann.empty((3, 4))
        cann.op("SWhere", cann.put(mask, "bool"), cann.put(x), cann.put([[7.0]]), y)
        self.agree(y, np.where(mask, x, 7))
        y = gapped(x, "f32")
        cann.op("InplaceMaskedFillScalar", y, cann.put(mask, "bool"), Scalar(-2))
        self.agree(y, np.where(mask, -2, x))

    # ---- rotary embeddings ----

    def test_rotary_embeddings(self):
        for mode in (0, 1):
            for dtype in ("f32", "f16"):
                x, angle = draw(2, 5, 3, 128, dtype=dtype), random.standard_normal((1, 5, 1, 64))
                c, s = np.cos(angle), np.sin(angle)
                c, s = (np.concatenate([t, t], -1) if mode == 0 else np.repeat(t, 2, -1) for t in (c, s))
                c, s = rounded(c, dtype), rounded(s, dtype)
                # as a product of complex numbers
                a, b = (x[..., :64], x[..., 64:]) if mode == 0 else (x[..., 0::2], x[..., 1::2])
                u, v = (c[..., :64], s[..., :64]) if mode == 0 else (c[..., 0::2], s[..., 0::2])
                z = (a + 1j * b) * (u + 1j * v)
                want = np.empty(x.shape)
                if mode == 0:
                    want[..., :64], want[..., 64:] = z.real, z.imag
                else:
                    want[..., 0::2], want[..., 1::2] = z.real, z.imag
                y = cann.empty(x.shape, dtype)
                cann.op("RotaryPositionEmbedding", gapped(x, dtype), cann.put(c, dtype), cann.put(s, dtype), mode, y)
                self.agree(y, want)
                q, k = cann.put(x, dtype), cann.put(x[:, :, :1], dtype)
                full = [cann.put(np.broadcast_to(t, (2, 5, 1, 128)), dtype) for t in (c, s)]
                cann.op("ApplyRotaryPosEmbV2", q, k, *full, 1, "half" if mode == 0 else "interleave")
                self.agree(q, want)
                self.agree(k, want[:, :, :1])
        self.refuse(561002, "RotaryPositionEmbedding", *[cann.put(draw(1, 2, 1, 5))] * 3, 0, cann.empty((1, 2, 1, 5)))

    # ---- experts ----

    def test_products_of_experts(self):
        counts, k, n = np.array([3, 0, 5, 1]), 32, 48
        x, w = draw(9, k, dtype="bf16"), draw(4, k, n, dtype="bf16")
        want = np.concatenate([x[e - c:e] @ w[i] for i, (c, e) in enumerate(zip(counts, counts.cumsum()))])
        for kind, groups in ((0, counts.cumsum()), (1, counts)):
            lists = {"GroupedMatmulV4": [[cann.put(w, "bf16")], [cann.put(np.swapaxes(w, 1, 2), "bf16").transposed()],
                                         [cann.put(m, "bf16") for m in w]],
                     "GroupedMatmulWeightNz": [[cann.put_nz(w, "bf16")], [cann.put_nz(w, "bf16", True)],
                                               [cann.put_nz(m, "bf16") for m in w]]}
            for name, weights in lists.items():
                more = (None, 0) if name.endswith("Nz") else ()
                for weight in weights:
                    y = cann.empty((9, n), "bf16")
                    cann.op(name, [cann.put(x, "bf16")], weight, *[None] * 6, cann.put(groups, "i64"), *[None] * 3,
                            2, 0, kind, 0, *more, [y], None, None)
                    got = cann.get(y)
                    self.assertTrue((np.abs(got - want) <= np.abs(want) * 2.0 ** -8 + 1e-9).all())
        y = cann.empty((9, n), "bf16")
        self.refuse(161002, "GroupedMatmulV4", [cann.put(x, "bf16")], [cann.put_nz(w, "bf16")], *[None] * 6,
                    cann.put(counts, "i64"), *[None] * 3, 2, 0, 1, 0, [y], None, None)
        self.refuse(161002, "GroupedMatmulV4", [cann.put(x, "bf16")], [cann.put(w, "bf16")], *[None] * 6,
                    cann.put(counts, "i32"), *[None] * 3, 2, 0, 1, 0, [y], None, None)

    def test_gating(self):
        """By sorting whole rows, not by picking the best one again and again."""
        for experts, groups, kept, k, mode, norm in ((8, 1, 1, 2, 0, 0), (32, 8, 3, 6, 1, 1), (64, 4, 2, 8, 0, 1)):
            x, bias = draw(5, experts, scale=2), draw(experts)
            score = 1 / (1 + np.exp(-x)) if norm else np.exp(x) / np.exp(x).sum(1, keepdims=True)
            choice = (score + bias).reshape(5, groups, -1)
            top = np.sort(choice, 2)[:, :, ::-1]
            rating = top[:, :, :2].sum(2) if mode else top[:, :, 0]
            open_groups = np.argsort(-rating, 1, kind="stable")[:, :kept]
            allowed = (np.arange(groups)[None, :, None] == open_groups[:, None, :]).any(2)
            choice = np.where(allowed[:, :, None], choice, -np.inf).reshape(5, experts)
            ids = np.argsort(-choice, 1, kind="stable")[:, :k]
            want = np.take_along_axis(score, ids, 1)
            want = want / (want.sum(1, keepdims=True) + 1e-20 if norm else 1) * 2.5
            y, i, s = cann.empty((5, k)), cann.empty((5, k), "i32"), cann.empty((5, experts))
            cann.op("MoeGatingTopK", cann.put(x), cann.put(bias), k, kept, groups, mode, 0, norm, True, 2.5, 1e-20,
                    y, i, s)
            np.testing.assert_array_equal(cann.get(i), ids)
            self.agree(y, want)
            self.agree(s, score)
        self.refuse(561002, "MoeGatingTopK", cann.put(draw(5, 8)), None, 9, 1, 1, 0, 0, 0, False, 1.0, 0.0,
                    cann.empty((5, 9)), cann.empty((5, 9), "i32"), cann.empty((5, 8)))

    def test_routing_there_and_back(self):
        n, k, experts, width = 6, 3, 5, 4
        x = draw(n, width)
        ids = np.array([random.permutation(experts)[:k] for _ in range(n)])
        order = np.argsort(ids.ravel(), kind="stable")
        where = np.empty(n * k, int)
        where[order] = np.arange(n * k)
        counts = np.bincount(ids.ravel(), minlength=experts)
        for name, extra, dtype, want in (
                ("MoeInitRoutingV2", (0, 0, experts, 0, 1, False), "i32", counts.cumsum()),
                ("MoeInitRoutingV2", (0, 0, experts, 0, 2, False), "i32", counts),
                ("MoeInitRoutingV3", (n * k, 0, experts, 0, 1, True, -1, (0, experts), 0), "i64", counts)):
            y, to, tokens = cann.empty((n * k, width)), cann.empty((n * k,), "i32"), cann.empty((experts,), dtype)
            optional = (None, None) if name.endswith("3") else ()
            cann.op(name, cann.put(x), cann.put(ids, "i32"), *optional, *extra, y, to, tokens, None)
            self.agree(y, x[order // k])
            np.testing.assert_array_equal(cann.get(to), where)
            np.testing.assert_array_equal(cann.get(tokens), want)
        scales, residual, out = draw(n, k), draw(n, width), cann.empty((n, width))
        cann.op("MoeFinalizeRoutingV2", y, to, cann.put(residual), None, None, cann.put(scales), None, 2, out)
        self.agree(out, residual + (scales[:, :, None] * x[:, None, :]).sum(1), ulps=4)

    # ---- attention ----

    @staticmethod
    def attention(q, k, v, scale, visible):
        """q [B, N, S, D], k and v [B, KvN, T, D], visible [B, S, T]."""
        ratio = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, ratio, 1), np.repeat(v, ratio, 1)
        logits = np.where(visible[:, None], np.einsum("bnsd,bntd->bnst", q, k) * scale, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return np.einsum("bnst,bntd->bnsd", weights / weights.sum(-1, keepdims=True), v)

    def fused(self, q, k, v, layout, heads, kv_heads, out, mask=None, q_lens=None, kv_lens=None, table=None, sparse=0,
              block=0, scale=0.25, name="FusedInferAttentionScoreV2", ropes=()):
        cann.op(name, q, [k], [v], None, mask, q_lens, kv_lens, *[None] * 7, table, *[None] * 9, *ropes, heads, scale,
                2 ** 31 - 1, 2 ** 31 - 1, layout, kv_heads, sparse, 0, block, 0, False, 0, 0, out, None)

    def nearly(self, array, want):
        got = cann.get(array)
        self.assertEqual(cann.counter("faults"), 0)
        self.assertTrue((np.abs(got - want) <= np.abs(want) * 2.0 ** -10 + 1e-7).all(), np.abs(got - want).max())

    def test_attention_of_each_layout(self):
        b, n, kv, s, t, d = 2, 4, 2, 3, 5, 16
        q, k, v = draw(b, n, s, d, dtype="f16"), draw(b, kv, t, d, dtype="f16"), draw(b, kv, t, d, dtype="f16")
        hidden = random.integers(0, 2, (b, 1, s, t)).astype(bool)
        hidden[..., 0] = False
        want = self.attention(q, k, v, 0.25, ~hidden[:, 0])
        swap = lambda x: np.ascontiguousarray(np.swapaxes(x, 1, 2))
        flat = lambda x: swap(x).reshape(x.shape[0], x.shape[2], -1)
        same = lambda x: x
        for layout, shape, out_shape in (("BNSD", same, same), ("BSND", swap, swap), ("BSH", flat, flat),
                                         ("BNSD_BSND", same, swap)):
            y = cann.empty(out_shape(q).shape, "f16")
            self.fused(*(cann.put(shape(x), "f16") for x in (q, k, v)), layout, n, kv, y, cann.put(hidden, "bool"))
            self.nearly(y, out_shape(want))
        fixed = cann.put(np.triu(np.ones((2048, 2048)), 1), "i8")
        for sparse, diagonal in ((2, 0), (3, t - s)):
            y = cann.empty(q.shape, "f16")
            self.fused(*(cann.put(x, "f16") for x in (q, k, v)), "BNSD", n, kv, y, fixed, sparse=sparse)
            visible = np.broadcast_to(np.tri(s, t, diagonal, bool), (b, s, t))
            self.nearly(y, self.attention(q, k, v, 0.25, visible))
        y = cann.empty(q.shape, "f16")
        self.refuse(561002, "FusedInferAttentionScoreV2", cann.put(q, "f16"), [cann.put(k, "f16")], [cann.put(v, "f16")],
                    *[None] * 21, 3, 0.25, 1, 1, "BNSD", kv, 0, 0, 0, 0, False, 0, 0, y, None)

    def test_attention_over_pages(self):
        b, n, kv, t, d, block = 3, 4, 2, 40, 32, 16
        lens = np.array([40, 17, 1])
        q, k, v = draw(b, n, 1, d, dtype="f16"), draw(b, kv, t, d, dtype="f16"), draw(b, kv, t, d, dtype="f16")
        visible = (np.arange(t) < lens[:, None])[:, None]
        want = self.attention(q, k, v, 0.25, visible)
        table = random.permutation(12)[:9].reshape(3, 3)
        pages = []
        for x in (k, v):
            cache = np.full((12, kv, block, d), 9.0)
            padded = np.zeros((b, kv, 48, d))
            padded[:, :, :t] = x
            cache[table] = padded.reshape(b, kv, 3, block, d).transpose(0, 2, 1, 3, 4)
            pages.append(cache)
        arguments = dict(kv_lens=tuple(int(n) for n in lens), table=cann.put(table, "i32"), block=block)
        y = cann.empty(q.shape, "f16")
        self.fused(cann.put(q, "f16"), *(cann.put(p, "f16") for p in pages), "BNSD", n, kv, y, **arguments)
        self.nearly(y, want)
        flat = [p.transpose(0, 2, 1, 3).reshape(12, block, kv * d) for p in pages]
        y = cann.empty((b, 1, n * d), "f16")
        self.fused(cann.put(q.reshape(b, 1, n * d), "f16"), *(cann.put(p, "f16") for p in flat), "BSH", n, kv, y,
                   **arguments)
        self.nearly(y, want.reshape(b, 1, n * d))
        y = cann.empty(q.shape, "f16")
        cann.op("IncreFlashAttentionV4", cann.put(q, "f16"), [cann.put(pages[0], "f16")], [cann.put(pages[1], "f16")],
                None, None, arguments["kv_lens"], *[None] * 7, arguments["table"], None, n, 0.25, "BNSD", kv, block, 0, y)
        self.nearly(y, want)

    def test_attention_with_ropes(self):
        """Multi-head latent attention: the rope's elements belong to q and k alone."""
        n, s, t, d, rope = 8, 1, 7, 64, 16
        q, k = draw(1, n, s, d + rope, dtype="f16"), draw(1, 1, t, d + rope, dtype="f16")
        want = self.attention(q, k, k[..., :d], 0.25, np.ones((1, s, t), bool))
        y = cann.empty((1, n, s, d), "f16")
        latent = cann.put(k[..., :d], "f16")
        self.fused(cann.put(q[..., :d], "f16"), latent, latent, "BNSD", n, 1, y, name="FusedInferAttentionScoreV3",
                   ropes=(cann.put(q[..., d:], "f16"), cann.put(k[..., d:], "f16"), None))
        self.nearly(y, want)


if __name__ == "__main__":
    result = unittest.main(exit=False, verbosity=0).result
    failed = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - failed} passed, {failed} failed")
    sys.exit(failed > 0)
