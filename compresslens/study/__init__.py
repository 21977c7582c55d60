"""Several compressed models beside the ones they came from: what their runs measured, compared in pairs."""
