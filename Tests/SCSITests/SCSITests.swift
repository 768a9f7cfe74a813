// SCSI
