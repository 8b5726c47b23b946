// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// kubeconfigFor builds a kubeconfig with one cluster, user and context of the same name.
func kubeconfigFor(name, server string, ca []byte, user string, pair keyPair) *api.Config {
	cfg := api.NewConfig()
	cfg.Clusters[name] = &api.Cluster{Server: server, CertificateAuthorityData: ca}
	cfg.AuthInfos[user] = &api.AuthInfo{ClientCertificateData: pair.cert, ClientKeyData: pair.key}
	cfg.Contexts[name] = &api.Context{Cluster: name, AuthInfo: user}
	cfg.CurrentContext = name
	return cfg
}

// pathOptions are kubectl's rules for which kubeconfig files to read and write, or just file.
func pathOptions(file string) *clientcmd.PathOptions {
	po := clientcmd.NewDefaultPathOptions()
	if file != "" {
		po.LoadingRules.ExplicitPath = file
	}
	return po
}

// kubeconfigFile is the file that new entries go to.
func kubeconfigFile(file string) string {
	po := pathOptions(file)
	if po.IsExplicitFile() {
		return po.GetExplicitFile()
	}
	return po.GetDefaultFilename()
}

// mergeKubeconfig adds the entries of add to the user's kubeconfig and makes its context the
// current one. Entries of the same names are replaced.
func mergeKubeconfig(file string, add *api.Config) error {
	po := pathOptions(file)
	have, err := po.GetStartingConfig()
	if err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	// Where an entry comes from decides where it is written: a new one goes to the default file.
	for name, entry := range add.Clusters {
		entry.LocationOfOrigin = ""
		have.Clusters[name] = entry
	}
	for name, entry := range add.AuthInfos {
		entry.LocationOfOrigin = ""
		have.AuthInfos[name] = entry
	}
	for name, entry := range add.Contexts {
		entry.LocationOfOrigin = ""
		have.Contexts[name] = entry
	}
	have.CurrentContext = add.CurrentContext
	if err := clientcmd.ModifyConfig(po, *have, false); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	return nil
}

// dropKubeconfig removes the cluster, user and context called name. The file goes too when
// created is set (it was made for this cluster) and nothing is left in it.
func dropKubeconfig(file, name string, created bool) error {
	if file == "" {
		return nil
	}
	cfg, err := clientcmd.LoadFromFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	_, hasCluster := cfg.Clusters[name]
	_, hasUser := cfg.AuthInfos[name]
	_, hasContext := cfg.Contexts[name]
	if !hasCluster && !hasUser && !hasContext {
		return nil
	}
	po := pathOptions(file)
	have, err := po.GetStartingConfig()
	if err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	delete(have.Clusters, name)
	delete(have.AuthInfos, name)
	delete(have.Contexts, name)
	if have.CurrentContext == name {
		have.CurrentContext = ""
	}
	if created && len(have.Clusters)+len(have.AuthInfos)+len(have.Contexts) == 0 {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("kubeconfig: %w", err)
		}
		return nil
	}
	if err := clientcmd.ModifyConfig(po, *have, false); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	return nil
}
