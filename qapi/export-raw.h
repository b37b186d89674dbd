/* Raw export: guest memory as plain bytes. */
#pragma once

#include "export.h"
#include "output.h"

/**
 * qapi_export_raw: write @range of @image to @output; holes stay holes where the output can have them.
 * Errors: see qapi_export().
 */
gboolean qapi_export_raw(const SnapImage *image, const QapiRange *range, QapiOutput *output,
                         SnapProgressFunc progress, void *opaque, GError **error);
