/* cli/main.c - placeholder until the subcommands land; replaced by cli/. */
int main(void)
{
    return 2;
}
