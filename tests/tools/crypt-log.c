/*
 * Preloaded into the program: notes every crypt(3) in the file that CRYPT_LOG
 * names, a line with the setting each, so that a test can count them.
 */
#include <crypt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

char *
crypt_r(const char *phrase, const char *setting, struct crypt_data *data)
{
	char *(*real)(const char *, const char *, struct crypt_data *);
	const char *file = getenv("CRYPT_LOG");
	FILE *log = file != NULL ? fopen(file, "a") : NULL;

	if (log != NULL) {
		fprintf(log, "%s\n", setting);
		fclose(log);
	}
	*(void **)&real = dlsym(RTLD_NEXT, "crypt_r");
	return real(phrase, setting, data);
}
