/*
 * Strings of JSON messages, as QEMU reads, keeps and writes them.
 *
 * In memory U+0000 is the two bytes C0 80 (and is read so, too). A string that a client sent is therefore a C
 * string, whatever is in it: strcmp() sees all of it, and no name is cut short by a "\u0000" to look like another.
 */
#pragma once

#include <glib.h>

/**
 * qapi_string_read: append a string token to a text for json-c: in quotation marks, with no escape but \\, \" and
 * those of control characters.
 * @token: (borrow) from its opening to its closing mark, which may both be apostrophes; a zero byte follows.
 * Return: (out) (nullable) NULL, or what is wrong with it in QEMU's words; part of it has been appended then.
 */
char *qapi_string_read(const char *token, gsize length_bytes, GString *out);

/**
 * qapi_string_write: append a string as QEMU writes it: in quotation marks, nothing but ASCII, U+FFFD for what is
 * no character.
 * @text: (borrow) may have zero bytes in it, which are U+0000 as well.
 */
void qapi_string_write(const char *text, gsize length_bytes, GString *out);
