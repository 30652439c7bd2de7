/* Reads the codes of the first input from standard input, writes the integers of the first output. */
#include <stdio.h>

#include "model.h"

int main(void) {
    if (fread(FXQ_INPUT_0, sizeof FXQ_INPUT_0, 1, stdin) != 1) {
        fprintf(stderr, "expected %zu bytes of codes\n", sizeof FXQ_INPUT_0);
        return 1;
    }
    fxq_run();
    return fwrite(FXQ_OUTPUT_0, sizeof FXQ_OUTPUT_0, 1, stdout) != 1;
}
