"""The DICOM edge: associations, and the services on them. Translates, never decides."""
