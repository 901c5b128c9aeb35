"""The stand-in of CANN's libraries from Python: device arrays, and operators by their name.

    cann = Cann("build")
    y = cann.empty((3, 4), "f32")
    cann.op("Silu", cann.put(x), y)         # raises CannError with the code
    cann.get(y)                             # a NumPy array

Arguments of an operator: an Array is an aclTensor, a list of them an aclTensorList, a tuple an aclIntArray,
None a null pointer, Scalar(x) an aclScalar, int an int64_t, float a double, bool a bool, str a char *.
I8(x) is an int8_t.
"""
import ctypes
import os

import numpy as np

ND, NZ = 2, 29
DTYPES = {"f32": 0, "f16": 1, "i8": 2, "i32": 3, "u8": 4, "i64": 9, "bool": 12, "bf16": 27}
NUMPY = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "i32": np.int32, "u8": np.uint8,
         "i64": np.int64, "bool": np.bool_, "bf16": np.uint16}


class CannError(Exception):
    def __init__(self, code, what, text):
        super().__init__(f"{what}: {code}: {text}")
        self.code = code


class I8(int):
    pass


class Scalar(float):
    pass


def to_bf16(x):
    """float64 to bits of bfloat16, to the nearest, ties to even."""
    x = np.asarray(x, np.float64)
    mantissa, exponent = np.frexp(x)
    unit = np.ldexp(1.0, np.maximum(exponent, -125) - 8)
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = np.where(np.isfinite(x), np.round(x / unit) * unit, x).astype(np.float32)
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def nz_of(matrix, c0):
    """[..., H, W] to its FRACTAL_NZ array [..., W1, H1, 16, C0], by slicing alone."""
    *batch, h, w = matrix.shape
    h1, w1 = -(-h // 16), -(-w // c0)
    padded = np.zeros((*batch, h1 * 16, w1 * c0), matrix.dtype)
    padded[..., :h, :w] = matrix
    blocks = padded.reshape(*batch, h1, 16, w1, c0)
    order = list(range(len(batch))) + [len(batch) + i for i in (2, 0, 1, 3)]
    return np.ascontiguousarray(blocks.transpose(order))


class Array:
    """A view of device memory."""

    def __init__(self, memory, shape, dtype, strides=None, offset=0, form=ND, storage=None, count=None):
        self.memory, self.shape, self.dtype = memory, tuple(shape), dtype
        step, self.strides = 1, []
        for n in reversed(self.shape):
            self.strides.insert(0, step)
            step *= n
        if strides is not None:
            self.strides = list(strides)
        self.offset, self.form = offset, form
        self.count = count if count is not None else step
        self.storage = tuple(storage) if storage is not None else (self.count,)

    def transposed(self):
        order = list(range(len(self.shape)))
        order[-1], order[-2] = order[-2], order[-1]
        return Array(self.memory, [self.shape[i] for i in order], self.dtype,
                     [self.strides[i] for i in order], self.offset, self.form, self.storage, self.count)


class Cann:
    def __init__(self, build):
        folder = os.path.abspath(os.path.join(build, "tests/cann/lib64"))
        self.rt, self.nn, self.ops = (ctypes.CDLL(os.path.join(folder, name), ctypes.RTLD_GLOBAL)
                                      for name in ("libascendcl.so", "libnnopbase.so", "libopapi.so"))
        for function in (self.nn.aclCreateTensor, self.nn.aclCreateTensorList, self.nn.aclCreateScalar,
                         self.nn.aclCreateIntArray):
            function.restype = ctypes.c_void_p
        self.rt.aclGetRecentErrMsg.restype = ctypes.c_char_p
        self.rt.cann_standin_counter.restype = ctypes.c_uint64
        self.rt.cann_standin_fault.restype = ctypes.c_char_p
        self.check("aclInit", self.rt.aclInit(None))
        self.check("aclrtSetDevice", self.rt.aclrtSetDevice(0))
        self.stream = ctypes.c_void_p()
        self.check("stream", self.rt.aclrtCreateStreamWithConfig(ctypes.byref(self.stream), 0, 0))
        self.workspace = self.allocate(1 << 20)

    def check(self, what, code):
        if code != 0:
            text = self.rt.aclGetRecentErrMsg()
            raise CannError(code, what, text.decode() if text else "")

    def counter(self, name):
        return self.rt.cann_standin_counter(name.encode())

    def allocate(self, size):
        memory = ctypes.c_void_p()
        self.check("aclrtMalloc", self.rt.aclrtMalloc(ctypes.byref(memory), ctypes.c_size_t(size), 0))
        return memory

    def write(self, memory, raw):
        raw = np.ascontiguousarray(raw)
        if raw.nbytes:
            size = ctypes.c_size_t(raw.nbytes)
            self.check("aclrtMemcpy", self.rt.aclrtMemcpy(memory, size, ctypes.c_void_p(raw.ctypes.data), size, 1))

    def put(self, values, dtype="f32"):
        """Values as they are after rounding to dtype; contiguous."""
        values = np.asarray(values)
        raw = to_bf16(values) if dtype == "bf16" else values.astype(NUMPY[dtype])
        array = Array(self.allocate(max(raw.nbytes, 1)), values.shape, dtype)
        self.write(array.memory, raw)
        return array

    def put_nz(self, values, dtype, swapped=False):
        """The NZ form of the matrices in the last two dimensions; swapped: of their transposes."""
        values = np.asarray(values)
        raw = to_bf16(values) if dtype == "bf16" else values.astype(NUMPY[dtype])
        stored = np.swapaxes(raw, -1, -2) if swapped else raw
        blocks = nz_of(stored, 32 // raw.itemsize)
        array = Array(self.allocate(blocks.nbytes), stored.shape, dtype, form=NZ, storage=blocks.shape,
                      count=blocks.size)
        self.write(array.memory, blocks)
        return array.transposed() if swapped else array

    def empty(self, shape, dtype="f32"):
        count = int(np.prod(shape, dtype=np.int64))
        return Array(self.allocate(max(count, 1) * np.dtype(NUMPY[dtype]).itemsize), shape, dtype)

    def raw(self, array):
        """All of the storage."""
        out = np.empty(array.count, NUMPY[array.dtype])
        if out.nbytes:
            size, host = ctypes.c_size_t(out.nbytes), ctypes.c_void_p(out.ctypes.data)
            self.check("aclrtMemcpy", self.rt.aclrtMemcpy(host, size, array.memory, size, 2))
        return out

    def get(self, array):
        raw = self.raw(array)
        values = from_bf16(raw) if array.dtype == "bf16" else raw
        view = np.lib.stride_tricks.as_strided(values[array.offset:], array.shape,
                                               [s * values.itemsize for s in array.strides])
        return view.copy()

    def tensor(self, a):
        def ints(values):
            return (ctypes.c_int64 * max(len(values), 1))(*values)
        return ctypes.c_void_p(self.nn.aclCreateTensor(
            ints(a.shape), ctypes.c_uint64(len(a.shape)), DTYPES[a.dtype], ints(a.strides),
            ctypes.c_int64(a.offset), a.form, ints(a.storage), ctypes.c_uint64(len(a.storage)), a.memory))

    def argument(self, value, trash):
        """The C value, and into trash how to undo it."""
        if isinstance(value, Array):
            made = self.tensor(value)
            trash.append((self.nn.aclDestroyTensor, made))
        elif isinstance(value, list):
            members = (ctypes.c_void_p * len(value))(*[self.tensor(v) for v in value])
            made = ctypes.c_void_p(self.nn.aclCreateTensorList(members, ctypes.c_uint64(len(value))))
            trash.append((self.nn.aclDestroyTensorList, made))
        elif isinstance(value, tuple):
            members = (ctypes.c_int64 * max(len(value), 1))(*value)
            made = ctypes.c_void_p(self.nn.aclCreateIntArray(members, ctypes.c_uint64(len(value))))
            trash.append((self.nn.aclDestroyIntArray, made))
        elif isinstance(value, Scalar):
            made = ctypes.c_void_p(self.nn.aclCreateScalar(ctypes.byref(ctypes.c_float(value)), 0))
            trash.append((self.nn.aclDestroyScalar, made))
        elif value is None:
            made = ctypes.c_void_p()
        elif isinstance(value, str):
            made = ctypes.c_char_p(value.encode())
        elif isinstance(value, bool):
            made = ctypes.c_bool(value)
        elif isinstance(value, I8):
            made = ctypes.c_int8(value)
        elif isinstance(value, int):
            made = ctypes.c_int64(value)
        else:
            made = ctypes.c_double(value)
        return made

    def op(self, name, *arguments):
        trash, size, executor = [], ctypes.c_uint64(), ctypes.c_void_p()
        try:
            values = [self.argument(a, trash) for a in arguments]
            first = getattr(self.ops, f"aclnn{name}GetWorkspaceSize")
            self.check(name, first(*values, ctypes.byref(size), ctypes.byref(executor)))
            self.check(name, getattr(self.ops, f"aclnn{name}")(self.workspace, size, executor, self.stream))
        finally:
            for undo, made in trash:
                undo(made)
        self.check(name, self.rt.aclrtSynchronizeStream(self.stream))
