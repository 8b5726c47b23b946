// SPDX-License-Identifier: Apache-2.0

// Package file keeps small files that must survive a crash: they are replaced in one step, and what
// is half written all the same, by whatever hand, is recognised and put aside.
package file

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrBroken says that a file is there but does not hold what it should.
var ErrBroken = errors.New("file is broken")

// brokenSuffix marks a file that was put aside.
const brokenSuffix = ".broken"

// Write replaces the file at path in one step: who reads it, also after a crash of the machine,
// finds the old content or the new. On an error the old content stays.
func Write(path string, body []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(body)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	return err
}

// ReadJSON decodes the file at path into v, which it leaves alone on an error: fs.ErrNotExist when
// there is none, ErrBroken when it is not what it should be.
func ReadJSON[V any](path string, v *V) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var read V
	if err := json.Unmarshal(b, &read); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrBroken, path, err)
	}
	*v = read
	return nil
}

// SetAside renames a broken file, in place of an older broken one, and returns its new name.
func SetAside(path string) (string, error) {
	return path + brokenSuffix, os.Rename(path, path+brokenSuffix)
}
