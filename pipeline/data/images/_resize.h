/* Separable resize of RGBX pixels as torch.nn.functional.interpolate does it on uint8: columns first, 16-bit weights, one
   rounding a pass. */

#ifndef PIPELINE_RESIZE_H
#define PIPELINE_RESIZE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(PLAIN_C)
#pragma GCC target("ssse3") /* every x86-64 processor since 2006 */
#endif

#if defined(__SSSE3__) && !defined(PLAIN_C)
#define VECTORS
#include <tmmintrin.h>
#endif

#define ROWS 4 /* that the columns pass takes at a time */
#define PIXEL 4 /* bytes: libjpeg-turbo writes RGBX, which vectorises where RGB does not */

/* Where an output pixel takes its values from: taps [first, first + count) times weights. */
typedef struct {
    int *first, *count;
    int16_t *weights; /* size x max_taps */
    double *exact;    /* likewise, before they are rounded */
    int max_taps, precision;
} Filter;

/* Weights for `size` outputs from [start, start + length) of a line of `available` pixels that begins at `origin`. */
static void make_filter(Filter *filter, int size, double start, double length, int origin, int low, int high, int antialias) {
    double scale = length / size;
    double support = antialias && scale > 1.0 ? scale : 1.0;
    double inverse = antialias && scale > 1.0 ? 1.0 / scale : 1.0;
    double largest = 0.0;
    for (int i = 0; i < size; i++) {
        double centre = start + scale * (i + 0.5), total = 0.0;
        double *row = filter->exact + (size_t)i * (size_t)filter->max_taps;
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
            row[k] = k < last - first && total != 0.0 ? row[k] / total : 0.0;
            if (row[k] > largest) largest = row[k];
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
            filter->weights[i * filter->max_taps + k] = (int16_t)(filter->exact[i * filter->max_taps + k] * (1 << precision) + 0.5);
}

static inline uint8_t clip(int value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

/* Bytes of a line of `size` pixels between the two passes: whole vectors. */
static inline size_t line_bytes(int size) { return ((size_t)size * PIXEL + 15) & ~(size_t)15; }

#ifdef VECTORS
static inline __m128i two_weights(const int16_t *weights) {
    int two;
    memcpy(&two, weights, sizeof two);
    return _mm_set1_epi32(two);
}

/* Columns: (rows, width) pixels to (rows, size). Reads up to one pixel past the last tap, with weight zero. */
static void narrow(const uint8_t *in, int rows, int width, uint8_t *out, int size, const Filter *filter) {
    const __m128i half = _mm_set1_epi32(1 << (filter->precision - 1)), shift = _mm_cvtsi32_si128(filter->precision);
    /* Two pixels to four pairs of 16-bit numbers: red and red, green and green ... */
    const __m128i pairs = _mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1);
    const size_t in_line = (size_t)width * PIXEL, out_line = line_bytes(size);
    for (int y = 0; y < rows; y += ROWS) {
        const uint8_t *line[ROWS];
        uint8_t *target[ROWS];
        for (int r = 0; r < ROWS; r++) { /* past the end: the last row again */
            const size_t row = (size_t)(y + r < rows ? y + r : rows - 1);
            line[r] = in + row * in_line;
            target[r] = out + row * out_line;
        }
        for (int x = 0; x < size; x++) {
            const int16_t *weights = filter->weights + x * filter->max_taps;
            const size_t first = (size_t)filter->first[x] * PIXEL;
            const int count = filter->count[x];
            __m128i sum[ROWS];
            for (int r = 0; r < ROWS; r++) sum[r] = half;
            for (int k = 0; k < count; k += 2) {
                const __m128i weight = two_weights(weights + k);
                for (int r = 0; r < ROWS; r++) {
                    const __m128i two = _mm_loadl_epi64((const __m128i *)(line[r] + first + k * PIXEL));
                    sum[r] = _mm_add_epi32(sum[r], _mm_madd_epi16(_mm_shuffle_epi8(two, pairs), weight));
                }
            }
            for (int r = 0; r < ROWS; r++) {
                const __m128i shifted = _mm_sra_epi32(sum[r], shift);
                const int result = _mm_cvtsi128_si32(_mm_packus_epi16(_mm_packs_epi32(shifted, shifted), shifted));
                memcpy(target[r] + x * PIXEL, &result, sizeof result);
            }
        }
    }
}

/* Sixteen bytes of an output row: the taps' rows times their weights. */
static inline __m128i weigh_rows(const uint8_t *in, size_t line, const int16_t *weights, int count, __m128i half, __m128i shift) {
    const __m128i zero = _mm_setzero_si128();
    __m128i sum[4] = {half, half, half, half};
    for (int k = 0; k < count; k += 2) {
        const __m128i weight = two_weights(weights + k);
        const __m128i one = _mm_loadu_si128((const __m128i *)(in + (size_t)k * line));
        const __m128i other = k + 1 < count ? _mm_loadu_si128((const __m128i *)(in + (size_t)(k + 1) * line)) : zero;
        const __m128i low = _mm_unpacklo_epi8(one, other), high = _mm_unpackhi_epi8(one, other);
        sum[0] = _mm_add_epi32(sum[0], _mm_madd_epi16(_mm_unpacklo_epi8(low, zero), weight));
        sum[1] = _mm_add_epi32(sum[1], _mm_madd_epi16(_mm_unpackhi_epi8(low, zero), weight));
        sum[2] = _mm_add_epi32(sum[2], _mm_madd_epi16(_mm_unpacklo_epi8(high, zero), weight));
        sum[3] = _mm_add_epi32(sum[3], _mm_madd_epi16(_mm_unpackhi_epi8(high, zero), weight));
    }
    for (int i = 0; i < 4; i++) sum[i] = _mm_sra_epi32(sum[i], shift);
    return _mm_packus_epi16(_mm_packs_epi32(sum[0], sum[1]), _mm_packs_epi32(sum[2], sum[3]));
}

/* Rows: (., size) pixels to three planes of (size, size), mirrored or not. */
static void shorten(const uint8_t *in, uint8_t *out, int rows, int size, const Filter *filter, int flip) {
    const __m128i half = _mm_set1_epi32(1 << (filter->precision - 1)), shift = _mm_cvtsi32_si128(filter->precision);
    /* Four pixels to four reds, four greens, four blues; or from right to left. */
    const __m128i split = flip ? _mm_setr_epi8(12, 8, 4, 0, 13, 9, 5, 1, 14, 10, 6, 2, -1, -1, -1, -1)
                               : _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, -1, -1, -1, -1);
    const size_t line = line_bytes(size);
    uint8_t planes[3][size + 8]; /* four bytes on either side for what the last vector holds beyond the line */
    for (int y = 0; y < rows; y++) {
        const uint8_t *source = in + (size_t)filter->first[y] * line;
        const int16_t *weights = filter->weights + y * filter->max_taps;
        for (int x = 0; x < size; x += 4) {
            const __m128i pixels = weigh_rows(source + x * PIXEL, line, weights, filter->count[y], half, shift);
            uint8_t channels[16];
            _mm_storeu_si128((__m128i *)channels, _mm_shuffle_epi8(pixels, split));
            const int place = flip ? size - x : 4 + x;
            for (int channel = 0; channel < 3; channel++) memcpy(planes[channel] + place, channels + 4 * channel, 4);
        }
        for (int channel = 0; channel < 3; channel++)
            memcpy(out + ((size_t)channel * (size_t)rows + (size_t)y) * (size_t)size, planes[channel] + 4, (size_t)size);
    }
}
#else
static void narrow(const uint8_t *in, int rows, int width, uint8_t *out, int size, const Filter *filter) {
    const int half = 1 << (filter->precision - 1);
    for (int y = 0; y < rows; y++) {
        const uint8_t *line = in + (size_t)y * (size_t)width * PIXEL;
        uint8_t *target = out + (size_t)y * line_bytes(size);
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

static void shorten(const uint8_t *in, uint8_t *out, int rows, int size, const Filter *filter, int flip) {
    const int half = 1 << (filter->precision - 1);
    const size_t line = line_bytes(size);
    int32_t sums[size * PIXEL];
    for (int y = 0; y < rows; y++) {
        const int16_t *weights = filter->weights + y * filter->max_taps;
        for (int i = 0; i < size * PIXEL; i++) sums[i] = half;
        for (int k = 0; k < filter->count[y]; k++) {
            const uint8_t *source = in + (size_t)(filter->first[y] + k) * line;
            const int32_t weight = weights[k];
            for (int i = 0; i < size * PIXEL; i++) sums[i] += weight * source[i];
        }
        for (int channel = 0; channel < 3; channel++) {
            uint8_t *target = out + ((size_t)channel * (size_t)rows + (size_t)y) * (size_t)size;
            for (int x = 0; x < size; x++)
                target[flip ? size - 1 - x : x] = clip(sums[x * PIXEL + channel] >> filter->precision);
        }
    }
}
#endif

/* How many taps a filter over `length` for `size` outputs may have. */
static int taps_of(double length, int size, int antialias) {
    double scale = length / size;
    double support = antialias && scale > 1.0 ? scale : 1.0;
    return (int)ceil(support) * 2 + 2; /* even: taps are taken in pairs */
}

/* A multiple of 16, so that the next one is aligned too. */
static size_t filter_bytes(int size, int max_taps) {
    size_t taps = (size_t)size * (size_t)max_taps;
    return ((sizeof(double) + sizeof(int16_t)) * taps + 2 * sizeof(int) * (size_t)size + 15) & ~(size_t)15;
}

/* Lay a filter out in memory that is there already. */
static void carve(Filter *filter, uint8_t **memory, int size, int max_taps) {
    filter->max_taps = max_taps;
    filter->exact = (double *)*memory;
    filter->first = (int *)(filter->exact + (size_t)size * (size_t)max_taps);
    filter->count = filter->first + size;
    filter->weights = (int16_t *)(filter->count + size);
    *memory += filter_bytes(size, max_taps);
}

#endif
