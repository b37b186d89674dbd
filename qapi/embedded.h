/* The guest that this program itself is, as the target "embedded". */
#pragma once

#include "libsnap-qmp.h"
#include "target-drivers.h"

typedef struct QapiEmbedded QapiEmbedded;

/**
 * qapi_embed: the first target of a helper.
 * @guest: (take). @name: (borrow) (nullable). @vm: (borrow) (nullable) for the life of the helper.
 * Return: (out) free with qapi_embedded_free(), after the helper.
 */
QapiEmbedded *qapi_embed(QapiHelper *helper, SnapGuest *guest, const char *name, const SnapQmpVm *vm,
                         void *opaque);
void qapi_embedded_free(QapiEmbedded *embedded);

/* As QapiDriver.would_run. */
gboolean qapi_embedded_would_run(void *own);

/* As QapiDriver.run. */
json_object *qapi_embedded_run(SnapGuest *guest, QapiVerb verb, QapiTarget *target, void *own, GError **error);
