/* cli/main.c - the program; everything is in cli_main, which the tests can link. */
#include "cli/command.h"

int main(int argc, char **argv)
{
    return cli_main(argc, (const char *const *)argv);
}
