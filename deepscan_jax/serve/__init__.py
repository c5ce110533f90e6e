"""The service: models, keys, uploads, jobs and pages behind HTTP. Nothing else in the library imports it."""
