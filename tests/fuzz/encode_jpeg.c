/* Writes JPEGs of kinds that Pillow cannot: arithmetic coding, any sampling factors, restart markers.

   encode_jpeg WIDTH HEIGHT COMPONENTS H_SAMP V_SAMP ARITHMETIC PROGRESSIVE RESTART > FILE */

#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

int main(int count, char **words) {
    if (count != 9) return 2;
    int value[9];
    for (int i = 1; i < 9; i++) value[i] = atoi(words[i]);
    struct jpeg_compress_struct info;
    struct jpeg_error_mgr errors;
    info.err = jpeg_std_error(&errors);
    jpeg_create_compress(&info);
    jpeg_stdio_dest(&info, stdout);
    info.image_width = (JDIMENSION)value[1];
    info.image_height = (JDIMENSION)value[2];
    info.input_components = value[3];
    info.in_color_space = value[3] == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(&info);
    info.comp_info[0].h_samp_factor = value[4];
    info.comp_info[0].v_samp_factor = value[5];
    info.arith_code = value[6];
    if (value[7]) jpeg_simple_progression(&info);
    info.restart_interval = (unsigned)value[8];
    jpeg_start_compress(&info, TRUE);
    unsigned char row[3 * 256];
    while (info.next_scanline < info.image_height) {
        for (int i = 0; i < value[1] * value[3]; i++)
            row[i] = (unsigned char)((unsigned)(i * 7) ^ (info.next_scanline * 5) ^ (unsigned)((i / 24 + (int)info.next_scanline / 9) % 2 * 90));
        JSAMPROW rows[1] = {row};
        jpeg_write_scanlines(&info, rows, 1);
    }
    jpeg_finish_compress(&info);
    return 0;
}
