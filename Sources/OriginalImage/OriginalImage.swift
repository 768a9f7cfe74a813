// OriginalImage
