/* Decodes the part of a JPEG that a crop needs and resizes it, in one call without the GIL.

   libjpeg-turbo skips the rows above the crop, the columns beside it and everything below it, and may shrink by 2, 4 or
   8 inside its inverse DCT. The resize is that of torch.nn.functional.interpolate on uint8: separable, columns first,
   16-bit weights, one rounding a pass; so an unshrunk crop has the very pixels of the path in plain Python.

   Nothing here prints or exits: every error and every warning of libjpeg is returned as a ValueError. */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("ssse3") /* every x86-64 processor since 2006 */
#define WIDEST __attribute__((target_clones("avx2", "default"))) /* chosen when loaded */
#else
#define WIDEST
#endif

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#ifdef __SSSE3__
#include <tmmintrin.h>
#endif

#define PIXEL 4 /* bytes: libjpeg-turbo writes RGBX, which vectorises where RGB does not */

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

/* Where an output pixel takes its values from: taps [first, first + count) times weights. */
typedef struct {
    int *first, *count;
    int16_t *weights; /* size x max_taps */
    int max_taps, precision;
} Filter;

typedef struct {
    uint8_t *memory;
    size_t size;
} Scratch;

/* Kept from call to call, up to a size: fresh memory costs more page faults than the work on it. */
#define KEPT_BYTES ((size_t)32 << 20)
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

static void on_message(j_common_ptr info) {
    Errors *errors = (Errors *)info->err;
    errors->manager.format_message(info, errors->message);
    longjmp(errors->escape, 1);
}

static void on_level(j_common_ptr info, int level) {
    if (level < 0) on_message(info); /* a warning: the data is damaged */
}

static void set_errors(struct jpeg_decompress_struct *info, Errors *errors) {
    info->err = jpeg_std_error(&errors->manager);
    errors->manager.error_exit = on_message;
    errors->manager.emit_message = on_level;
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
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, length);
    jpeg_read_header(&info, TRUE);
    *height = (int)info.image_height;
    *width = (int)info.image_width;
    *is_cmyk = info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK;
    jpeg_destroy_decompress(&info);
    return 0;
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
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, length);
    jpeg_read_header(&info, TRUE);
    if (wanted->left + wanted->width > (int)(info.image_width + (unsigned)shrink - 1) / shrink ||
        wanted->top + wanted->height > (int)(info.image_height + (unsigned)shrink - 1) / shrink) {
        snprintf(errors->message, sizeof errors->message, "no such crop");
        longjmp(errors->escape, 1);
    }
    info.out_color_space = JCS_EXT_RGBX;
    info.scale_num = 1;
    info.scale_denom = (unsigned)shrink;
    info.dct_method = JDCT_ISLOW;
    jpeg_start_decompress(&info);
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
    if (wanted->pixels == NULL) {
        snprintf(errors->message, sizeof errors->message, "out of memory");
        longjmp(errors->escape, 1);
    }
    if (wanted->top > 0) jpeg_skip_scanlines(&info, (JDIMENSION)wanted->top);
    while ((int)info.output_scanline < bottom) {
        JSAMPROW row = wanted->pixels + row_bytes * (size_t)((int)info.output_scanline - wanted->top);
        jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_abort_decompress(&info); /* nothing below the crop is looked at */
    jpeg_destroy_decompress(&info);
    return 0;
}

/* Weights for `size` outputs from [start, start + length) of a line of `available` pixels that begins at `origin`. */
static void make_filter(Filter *filter, int size, double start, double length, int origin, int low, int high, int antialias) {
    double scale = length / size;
    double support = antialias && scale > 1.0 ? scale : 1.0;
    double inverse = antialias && scale > 1.0 ? 1.0 / scale : 1.0;
    double row[filter->max_taps], largest = 0.0;
    double *all = malloc(sizeof(double) * (size_t)size * (size_t)filter->max_taps);
    for (int i = 0; i < size; i++) {
        double centre = start + scale * (i + 0.5), total = 0.0;
        int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
        if (first < low) first = low;
        if (last > high) last = high;
        if (last - first > filter->max_taps) last = first + filter->max_taps;
        for (int k = 0; k < last - first; k++) {
            double distance = fabs((first + k - centre + 0.5) * inverse);
            row[k] = distance < 1.0 ? 1.0 - distance : 0.0;
            total += row[k];
        }
        for (int k = 0; k < filter->max_taps; k++) {
            double weight = k < last - first && total != 0.0 ? row[k] / total : 0.0;
            all[i * filter->max_taps + k] = weight;
            if (weight > largest) largest = weight;
        }
        filter->first[i] = first - origin;
        filter->count[i] = last - first;
    }
    /* The most bits with which the largest weight still fits 16 signed ones. */
    int precision = 0;
    while (precision < 22 && (int)(0.5 + largest * (1 << (precision + 1))) < (1 << 15)) precision++;
    filter->precision = precision;
    for (int i = 0; i < size; i++)
        for (int k = 0; k < filter->max_taps; k++)
            filter->weights[i * filter->max_taps + k] = (int16_t)(all[i * filter->max_taps + k] * (1 << precision) + 0.5);
    free(all);
}

static inline uint8_t clip(int value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

/* Columns: (rows, width) pixels to (rows, size). Reads up to one pixel past the last tap, with weight zero. */
#ifdef __SSSE3__
static void narrow(const uint8_t *in, int rows, int width, uint8_t *out, int size, const Filter *filter) {
    const __m128i half = _mm_set1_epi32(1 << (filter->precision - 1)), shift = _mm_cvtsi32_si128(filter->precision);
    /* Two pixels to four pairs of 16-bit numbers: red and red, green and green ... */
    const __m128i pairs = _mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1);
    for (int y = 0; y < rows; y++) {
        const uint8_t *line = in + (size_t)y * (size_t)width * PIXEL;
        uint8_t *target = out + (size_t)y * (size_t)size * PIXEL;
        for (int x = 0; x < size; x++) {
            const uint8_t *pixel = line + (size_t)filter->first[x] * PIXEL;
            const int16_t *weights = filter->weights + x * filter->max_taps;
            __m128i sum = half;
            for (int k = 0; k < filter->count[x]; k += 2) {
                int two;
                memcpy(&two, weights + k, sizeof two);
                const __m128i values = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)(pixel + k * PIXEL)), pairs);
                sum = _mm_add_epi32(sum, _mm_madd_epi16(values, _mm_set1_epi32(two)));
            }
            sum = _mm_sra_epi32(sum, shift);
            const int result = _mm_cvtsi128_si32(_mm_packus_epi16(_mm_packs_epi32(sum, sum), sum));
            memcpy(target + x * PIXEL, &result, sizeof result);
        }
    }
}
#else
static void narrow(const uint8_t *in, int rows, int width, uint8_t *out, int size, const Filter *filter) {
    const int half = 1 << (filter->precision - 1);
    for (int y = 0; y < rows; y++) {
        const uint8_t *line = in + (size_t)y * (size_t)width * PIXEL;
        uint8_t *target = out + (size_t)y * (size_t)size * PIXEL;
        for (int x = 0; x < size; x++) {
            const uint8_t *pixel = line + (size_t)filter->first[x] * PIXEL;
            const int16_t *weights = filter->weights + x * filter->max_taps;
            int sums[PIXEL] = {half, half, half, half};
            for (int k = 0; k < filter->count[x]; k++)
                for (int channel = 0; channel < PIXEL; channel++) sums[channel] += weights[k] * pixel[k * PIXEL + channel];
            for (int channel = 0; channel < PIXEL; channel++)
                target[x * PIXEL + channel] = clip(sums[channel] >> filter->precision);
        }
    }
}
#endif

/* Rows: (., size) pixels to three planes of (size, size), mirrored or not. */
WIDEST static void shorten(const uint8_t *in, uint8_t *out, int size, const Filter *filter, int flip) {
    const int half = 1 << (filter->precision - 1);
    const int line_bytes = size * PIXEL;
    int32_t sums[line_bytes];
    uint8_t line[line_bytes];
    for (int y = 0; y < size; y++) {
        const int16_t *weights = filter->weights + y * filter->max_taps;
        for (int x = 0; x < line_bytes; x++) sums[x] = half;
        for (int k = 0; k < filter->count[y]; k++) {
            const uint8_t *source = in + (size_t)(filter->first[y] + k) * (size_t)line_bytes;
            const int32_t weight = weights[k];
            for (int x = 0; x < line_bytes; x++) sums[x] += weight * source[x];
        }
        for (int x = 0; x < line_bytes; x++) line[x] = clip(sums[x] >> filter->precision);
        for (int channel = 0; channel < 3; channel++) {
            uint8_t *target = out + ((size_t)channel * (size_t)size + (size_t)y) * (size_t)size;
            for (int x = 0; x < size; x++) target[x] = line[(flip ? size - 1 - x : x) * PIXEL + channel];
        }
    }
}

/* How many taps a filter over `length` for `size` outputs may have. */
static int taps_of(double length, int size, int antialias) {
    double scale = length / size;
    double support = antialias && scale > 1.0 ? scale : 1.0;
    return (int)ceil(support) * 2 + 2; /* even: taps are taken in pairs */
}

static void carve(Filter *filter, uint8_t **memory, int size, int max_taps) {
    filter->max_taps = max_taps;
    filter->first = (int *)*memory;
    filter->count = filter->first + size;
    filter->weights = (int16_t *)(filter->count + size);
    *memory += sizeof(int) * 2 * (size_t)size + ((sizeof(int16_t) * (size_t)size * (size_t)max_taps + 15) & ~(size_t)15);
}

static int crop_resize(
    const uint8_t *data, size_t length, int top, int left, int height, int width, int shrink, int size, int flip, int antialias,
    uint8_t *out, Errors *errors
) {
    /* The crop in coordinates of the shrunk image; its edges may fall inside pixels. */
    double x0 = (double)left / shrink, y0 = (double)top / shrink, w = (double)width / shrink, h = (double)height / shrink;
    int low_x = (int)floor(x0), low_y = (int)floor(y0), high_x = (int)ceil(x0 + w), high_y = (int)ceil(y0 + h);
    Region region = {NULL, low_x, low_y, high_x - low_x, high_y - low_y};
    if (decode_region(data, length, shrink, &region, errors)) return -1;
    int taps_x = taps_of(w, size, antialias), taps_y = taps_of(h, size, antialias);
    size_t filter_bytes = (size_t)size * (4 * sizeof(int) + sizeof(int16_t) * (size_t)(taps_x + taps_y)) + 64;
    uint8_t *memory = reserve(&filters, filter_bytes);
    uint8_t *middle = reserve(&narrowed, (size_t)region.height * (size_t)size * PIXEL);
    if (memory == NULL || middle == NULL) {
        snprintf(errors->message, sizeof errors->message, "out of memory");
        return -1;
    }
    Filter columns, rows;
    carve(&columns, &memory, size, taps_x);
    carve(&rows, &memory, size, taps_y);
    if (high_x > region.left + region.width) high_x = region.left + region.width;
    if (high_y > region.top + region.height) high_y = region.top + region.height;
    make_filter(&columns, size, x0, w, region.left, low_x, high_x, antialias);
    make_filter(&rows, size, y0, h, region.top, low_y, high_y, antialias);
    narrow(region.pixels, region.height, region.width, middle, size, &columns);
    shorten(middle, out, size, &rows, flip);
    release_large(&decoded);
    release_large(&narrowed);
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
    int top, left, height, width, shrink, size, flip, antialias;
    (void)module;
    if (!PyArg_ParseTuple(
            args, "y*iiiiiippw*", &data, &top, &left, &height, &width, &shrink, &size, &flip, &antialias, &out))
        return NULL;
    int failed = 1;
    if (out.len != (Py_ssize_t)3 * size * size)
        snprintf(errors.message, sizeof errors.message, "out holds %zd bytes, not 3 x %d x %d", out.len, size, size);
    else if (top < 0 || left < 0 || height < 1 || width < 1 || (shrink != 1 && shrink != 2 && shrink != 4 && shrink != 8))
        snprintf(errors.message, sizeof errors.message, "no such crop");
    else {
        Py_BEGIN_ALLOW_THREADS
        failed = crop_resize(
            data.buf, (size_t)data.len, top, left, height, width, shrink, size, flip, antialias, out.buf, &errors);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (failed) return PyErr_Format(PyExc_ValueError, "%s", errors.message);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"read_size", py_read_size, METH_VARARGS, "read_size(data) -> (height, width, is_cmyk)"},
    {"crop_resize", py_crop_resize, METH_VARARGS,
     "crop_resize(data, top, left, height, width, shrink, size, flip, antialias, out): fill out, (3, size, size) bytes"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_jpeg", "Region decoding of JPEG files.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModule_Create(&definition); }
