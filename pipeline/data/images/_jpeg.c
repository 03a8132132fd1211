/* Decodes the part of a JPEG that a crop needs and resizes it, in one call without the GIL.

   libjpeg-turbo skips the rows above the crop, the columns next to it and everything below it, and may shrink by 2, 4 or
   8 inside its inverse DCT. The resize is that of torch.nn.functional.interpolate on uint8: separable, columns first,
   16-bit weights, one rounding a pass; so an unshrunk crop has the very pixels of the path in plain Python.

   Nothing here prints or exits: every error and every warning of libjpeg is returned as a ValueError. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "_resize.h"

typedef struct {
    struct jpeg_error_mgr manager; /* first: libjpeg hands back a pointer to it */
    jmp_buf escape;
    char message[JMSG_LENGTH_MAX];
} Errors;

/* Rows of a decoded region, in coordinates of the shrunk image. */
typedef struct {
    uint8_t *pixels;
    int left, top, width, height;
} Region;

typedef struct {
    uint8_t *memory;
    size_t size;
} Scratch;

/* Kept from call to call, up to a size: fresh memory costs more page faults than the work on it. */
#ifndef KEPT_BYTES /* the fuzzer keeps none: a sanitizer sees a read behind a buffer's end, not one inside a larger buffer */
#define KEPT_BYTES ((size_t)32 << 20)
#endif
static __thread Scratch decoded, narrowed, filters;

static void *reserve(Scratch *scratch, size_t size) {
    if (scratch->size < size) {
        free(scratch->memory);
        scratch->memory = malloc(size);
        scratch->size = scratch->memory == NULL ? 0 : size;
    }
    return scratch->memory;
}

static void release_large(Scratch *scratch) {
    if (scratch->size > KEPT_BYTES) {
        free(scratch->memory);
        scratch->memory = NULL;
        scratch->size = 0;
    }
}

static void release_all(void) {
    release_large(&decoded);
    release_large(&narrowed);
    release_large(&filters);
}

static void on_message(j_common_ptr info) {
    Errors *errors = (Errors *)info->err;
    errors->manager.format_message(info, errors->message);
    longjmp(errors->escape, 1);
}

static void on_level(j_common_ptr info, int level) {
    /* A warning: the data is damaged. A lone marker in a header: legal, but not every decoder takes it. */
    if (level < 0 || info->err->msg_code == JTRC_PARMLESS_MARKER) on_message(info);
}

/* As if libjpeg had found it. */
static void fail(struct jpeg_decompress_struct *info, const char *message) {
    Errors *errors = (Errors *)info->err;
    snprintf(errors->message, sizeof errors->message, "%s", message);
    longjmp(errors->escape, 1);
}

static void set_errors(struct jpeg_decompress_struct *info, Errors *errors) {
    info->err = jpeg_std_error(&errors->manager);
    errors->manager.error_exit = on_message;
    errors->manager.emit_message = on_level;
}

/* After setjmp: any of these may jump. */
static void open_image(struct jpeg_decompress_struct *info, const uint8_t *data, size_t length) {
    jpeg_create_decompress(info);
    jpeg_mem_src(info, data, length);
    jpeg_read_header(info, TRUE);
}

/* 0, or -1 with a message. */
static int read_size(const uint8_t *data, size_t length, Errors *errors, int *height, int *width, int *is_cmyk) {
    struct jpeg_decompress_struct info;
    memset(&info, 0, sizeof info);
    set_errors(&info, errors);
    if (setjmp(errors->escape)) {
        jpeg_destroy_decompress(&info);
        return -1;
    }
    open_image(&info, data, length);
    *height = (int)info.image_height;
    *width = (int)info.image_width;
    *is_cmyk = info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK;
    jpeg_destroy_decompress(&info);
    return 0;
}

/* Whether all scans of a progressive image came. libjpeg smooths the blocks of one that lacks some, from neighbours that
   a cut image does not have. */
static int has_all_scans(const struct jpeg_decompress_struct *info) {
    if (info->coef_bits == NULL) return 1; /* not progressive */
    for (int component = 0; component < info->num_components; component++)
        for (int k = 0; k < DCTSIZE2; k++)
            if (info->coef_bits[component][k] != 0) return 0;
    return 1;
}

/* Whether what was not decoded is one scan's data and then the end: another marker there is damage, which a decoder of the
   whole image would meet. Bits are not looked at. */
static int ends_well(struct jpeg_decompress_struct *info) {
    if (jpeg_input_complete(info)) return 1; /* several scans: all were read before the first pixel */
    const uint8_t *place = info->src->next_input_byte, *end = place + info->src->bytes_in_buffer;
    int marker = info->unread_marker; /* the bit reader is ahead of the decoder */
    while (marker == 0 || (marker >= JPEG_RST0 && marker <= JPEG_RST0 + 7)) {
        place = place < end ? memchr(place, 0xFF, (size_t)(end - place)) : NULL;
        if (place == NULL) return 0;
        while (place < end && *place == 0xFF) place++; /* filling */
        if (place == end) return 0;
        marker = *place++;
    }
    return marker == JPEG_EOI;
}

/* Decode the pixels of `wanted` (its pixels are set here). 0, or -1 with a message. */
static int decode_region(const uint8_t *data, size_t length, int shrink, Region *wanted, Errors *errors) {
    struct jpeg_decompress_struct info;
    memset(&info, 0, sizeof info);
    set_errors(&info, errors);
    if (setjmp(errors->escape)) {
        jpeg_destroy_decompress(&info);
        return -1;
    }
    open_image(&info, data, length);
    if (wanted->left + wanted->width > (int)(info.image_width + (unsigned)shrink - 1) / shrink ||
        wanted->top + wanted->height > (int)(info.image_height + (unsigned)shrink - 1) / shrink)
        fail(&info, "no such crop");
    info.out_color_space = JCS_EXT_RGBX;
    info.scale_num = 1;
    info.scale_denom = (unsigned)shrink;
    info.dct_method = JDCT_ISLOW;
    jpeg_start_decompress(&info);
    if (!has_all_scans(&info)) fail(&info, "scans are missing");
    /* One block more on either side: upsampled chroma looks at its neighbours, which at a cut edge are not there. */
    int margin = info.max_h_samp_factor * DCTSIZE;
    int right = wanted->left + wanted->width + margin;
    if (right > (int)info.output_width) right = (int)info.output_width;
    JDIMENSION left = wanted->left > margin ? (JDIMENSION)(wanted->left - margin) : 0;
    JDIMENSION width = (JDIMENSION)right - left;
    if (left > 0 || width < info.output_width) jpeg_crop_scanline(&info, &left, &width);
    int bottom = wanted->top + wanted->height;
    if (bottom > (int)info.output_height) bottom = (int)info.output_height;
    wanted->left = (int)left;
    wanted->width = (int)width;
    wanted->height = bottom - wanted->top;
    size_t row_bytes = (size_t)width * PIXEL;
    wanted->pixels = reserve(&decoded, row_bytes * (size_t)wanted->height + 16);
    if (wanted->pixels == NULL) fail(&info, "out of memory");
    if (wanted->top > 0) jpeg_skip_scanlines(&info, (JDIMENSION)wanted->top);
    while ((int)info.output_scanline < bottom) {
        JSAMPROW row = wanted->pixels + row_bytes * (size_t)((int)info.output_scanline - wanted->top);
        jpeg_read_scanlines(&info, &row, 1);
    }
    if (!ends_well(&info)) fail(&info, "damaged below the crop");
    jpeg_abort_decompress(&info); /* nothing below the crop is decoded */
    jpeg_destroy_decompress(&info);
    return 0;
}

/* What no decoder of the whole image can do without, for benchmarks. 0, or -1 with a message. */
static int entropy_decode(const uint8_t *data, size_t length, Errors *errors) {
    struct jpeg_decompress_struct info;
    memset(&info, 0, sizeof info);
    set_errors(&info, errors);
    if (setjmp(errors->escape)) {
        jpeg_destroy_decompress(&info);
        return -1;
    }
    open_image(&info, data, length);
    jpeg_read_coefficients(&info);
    jpeg_destroy_decompress(&info);
    return 0;
}

static int crop_resize(
    const uint8_t *data, size_t length, int top, int left, int height, int width, int shrink, int out_height, int out_width, int flip,
    int antialias, uint8_t *out, Errors *errors
) {
    /* The crop in coordinates of the shrunk image; its edges may fall inside pixels. */
    double x0 = (double)left / shrink, y0 = (double)top / shrink, w = (double)width / shrink, h = (double)height / shrink;
    int low_x = (int)floor(x0), low_y = (int)floor(y0), high_x = (int)ceil(x0 + w), high_y = (int)ceil(y0 + h);
    Region region = {NULL, low_x, low_y, high_x - low_x, high_y - low_y};
    if (decode_region(data, length, shrink, &region, errors)) {
        release_all();
        return -1;
    }
    int taps_x = taps_of(w, out_width, antialias), taps_y = taps_of(h, out_height, antialias);
    uint8_t *memory = reserve(&filters, filter_bytes(out_width, taps_x) + filter_bytes(out_height, taps_y));
    uint8_t *middle = reserve(&narrowed, (size_t)region.height * line_bytes(out_width));
    if (memory == NULL || middle == NULL) {
        snprintf(errors->message, sizeof errors->message, "out of memory");
        release_all();
        return -1;
    }
    Filter columns, rows;
    carve(&columns, &memory, out_width, taps_x);
    carve(&rows, &memory, out_height, taps_y);
    if (high_x > region.left + region.width) high_x = region.left + region.width;
    if (high_y > region.top + region.height) high_y = region.top + region.height;
    make_filter(&columns, out_width, x0, w, region.left, low_x, high_x, antialias);
    make_filter(&rows, out_height, y0, h, region.top, low_y, high_y, antialias);
    narrow(region.pixels, region.height, region.width, middle, out_width, &columns);
    shorten(middle, out, out_height, out_width, &rows, flip);
    release_all();
    return 0;
}

static PyObject *py_read_size(PyObject *module, PyObject *args) {
    Py_buffer data;
    Errors errors;
    int height, width, is_cmyk;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*", &data)) return NULL;
    int failed = read_size(data.buf, (size_t)data.len, &errors, &height, &width, &is_cmyk);
    PyBuffer_Release(&data);
    if (failed) return PyErr_Format(PyExc_ValueError, "%s", errors.message);
    return Py_BuildValue("iii", height, width, is_cmyk);
}

static PyObject *py_crop_resize(PyObject *module, PyObject *args) {
    Py_buffer data, out;
    Errors errors;
    int top, left, height, width, shrink, out_width, flip, antialias;
    (void)module;
    if (!PyArg_ParseTuple(
            args, "y*iiiiiippw*", &data, &top, &left, &height, &width, &shrink, &out_width, &flip, &antialias, &out))
        return NULL;
    int failed = 1;
    /* Height from the bytes. */
    Py_ssize_t out_height = out_width < 1 ? 0 : out.len / (3 * (Py_ssize_t)out_width);
    if (out_height < 1 || out_height > INT_MAX || out.len != 3 * out_height * out_width)
        snprintf(errors.message, sizeof errors.message, "out holds %zd bytes, not 3 x height x %d", out.len, out_width);
    else if (top < 0 || left < 0 || height < 1 || width < 1 || (shrink != 1 && shrink != 2 && shrink != 4 && shrink != 8))
        snprintf(errors.message, sizeof errors.message, "no such crop");
    else {
        Py_BEGIN_ALLOW_THREADS
        failed = crop_resize(
            data.buf, (size_t)data.len, top, left, height, width, shrink, (int)out_height, out_width, flip, antialias, out.buf,
            &errors);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (failed) return PyErr_Format(PyExc_ValueError, "%s", errors.message);
    Py_RETURN_NONE;
}

static PyObject *py_entropy_decode(PyObject *module, PyObject *args) {
    Py_buffer data;
    Errors errors;
    int failed;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*", &data)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = entropy_decode(data.buf, (size_t)data.len, &errors);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    if (failed) return PyErr_Format(PyExc_ValueError, "%s", errors.message);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"read_size", py_read_size, METH_VARARGS, "read_size(data) -> (height, width, is_cmyk)"},
    {"crop_resize", py_crop_resize, METH_VARARGS,
     "crop_resize(data, top, left, height, width, shrink, out_width, flip, antialias, out): fill out, (3, out_height, out_width) bytes"},
    {"entropy_decode", py_entropy_decode, METH_VARARGS, "entropy_decode(data): undo the entropy coding, for benchmarks"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_jpeg", "Region decoding of JPEG files.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModule_Create(&definition); }
