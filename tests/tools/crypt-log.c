/*
 * Linked with the program in the place of crypt_r(3): notes each call in the
 * file that CRYPT_LOG names, a line with the setting, so that a test can count
 * them.
 */
#include <crypt.h>
#include <stdio.h>
#include <stdlib.h>

/* As "ld --wrap" names them.
 * NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
char *__real_crypt_r(const char *, const char *, struct crypt_data *);
char *__wrap_crypt_r(const char *, const char *, struct crypt_data *);
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

char *
__wrap_crypt_r(const char *phrase, const char *setting, struct crypt_data *data)
{
	const char *file = getenv("CRYPT_LOG");
	FILE *log = file != NULL ? fopen(file, "a") : NULL;

	if (log != NULL) {
		fprintf(log, "%s\n", setting);
		fclose(log);
	}
	return __real_crypt_r(phrase, setting, data);
}
