package modes

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"reflect"
	"sync/atomic"

	"flexfs/admin"
	"flexfs/store"
)

// servedVolumes are the volumes of a proxy: those that admin lists, and those
// that it lists no more while the disk has blocks of theirs that the bucket may
// lack. They are kept in a file, so that a restart does not forget where such
// blocks belong. writeThrough may be called concurrently.
type servedVolumes struct {
	file string // it holds secrets
	log  *slog.Logger
	all  map[store.Volume]admin.VolumeSettings

	through atomic.Pointer[map[store.Volume]bool]
}

// openServedVolumes reads the file of an earlier run.
func openServedVolumes(file string, log *slog.Logger) *servedVolumes {
	v := &servedVolumes{file: file, log: log, all: map[store.Volume]admin.VolumeSettings{}}
	v.through.Store(&map[store.Volume]bool{})
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return v
	}
	var list []admin.VolumeSettings
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		log.Warn("the volumes of the last run are not known", "file", file, "err", err)
	}
	for _, s := range list {
		if id, err := store.ParseVolume(s.Volume.ID); err == nil {
			v.all[id] = s
		}
	}
	return v
}

// update takes over what admin lists, and returns all that is served.
func (v *servedVolumes) update(listed []admin.VolumeSettings, dirty []store.DirtyBlock) (served []admin.VolumeSettings) {
	all := map[store.Volume]admin.VolumeSettings{}
	for _, b := range dirty {
		if s, ok := v.all[b.Key.Volume]; ok {
			all[b.Key.Volume] = s
		}
	}
	through := map[store.Volume]bool{}
	for id := range all {
		through[id] = true // unless it is listed
	}
	for _, s := range listed {
		if id, err := store.ParseVolume(s.Volume.ID); err == nil {
			all[id], through[id] = s, s.Volume.WriteThrough
		}
	}
	v.through.Store(&through)
	for _, s := range all {
		served = append(served, s)
	}
	if !reflect.DeepEqual(all, v.all) {
		v.all = all
		if err := writeSecret(v.file, served); err != nil {
			v.log.Warn("the volumes are not kept: blocks of one that is taken from this proxy could not be uploaded after a restart", "file", v.file, "err", err)
		}
	}
	return served
}

// writeThrough reports whether the volume's blocks are acknowledged by the bucket:
// if it says so, or is served no more.
func (v *servedVolumes) writeThrough(volume store.Volume) bool {
	through, known := (*v.through.Load())[volume]
	return through || !known
}
