package harness

import (
	"crypto/tls"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Encryption is which ports of a server have TLS; its files are the test's, which
// names them in flags. The zero value has none.
type Encryption struct {
	// ClientTLS is how clients call, the harness among them; nil for plain text.
	ClientTLS *tls.Config
	// PeerTLS says that members call each other by TLS.
	PeerTLS bool
}

func (e Encryption) clientScheme() string {
	if e.ClientTLS != nil {
		return "https"
	}
	return "http"
}

func (e Encryption) peerScheme() string {
	if e.PeerTLS {
		return "https"
	}
	return "http"
}

func (e Encryption) credentials() grpc.DialOption {
	if e.ClientTLS != nil {
		return grpc.WithTransportCredentials(credentials.NewTLS(e.ClientTLS))
	}
	return grpc.WithTransportCredentials(insecure.NewCredentials())
}
