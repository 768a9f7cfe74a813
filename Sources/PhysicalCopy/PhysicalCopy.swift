// PhysicalCopy
