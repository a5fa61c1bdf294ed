/*
 * become UID GID KEPT: calls sandbox_become() and says what came of it; "ids"
 * are those that it had before.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../sandbox.h"

int
main(int argc, char **argv)
{
	unsigned id[3] = {geteuid(), getegid(), getegid()};
	int i;

	for (i = 1; i < argc && i <= 3; i++)
		id[i - 1] = (unsigned)strtoul(argv[i], NULL, 10);
	if (sandbox_become(id[0], id[1], id[2]) == 0)
		puts("done");
	else
		puts(strerror(errno));
	return 0;
}
